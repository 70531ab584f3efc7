#define GRISTMILL_TABLE kernels_plain
#include "kernels.inc"
