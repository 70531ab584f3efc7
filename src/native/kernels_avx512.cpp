#define GRISTMILL_TABLE kernels_avx512
#include "kernels.inc"
