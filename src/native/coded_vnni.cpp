#define GRISTMILL_CODED coded_vnni
#include "coded.inc"
