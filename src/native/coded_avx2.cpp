#define GRISTMILL_CODED coded_avx2
#include "coded.inc"
