#define GRISTMILL_TABLE kernels_avx2
#include "kernels.inc"
