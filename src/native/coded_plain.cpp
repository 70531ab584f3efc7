#define GRISTMILL_CODED coded_plain
#include "coded.inc"
