#define GRISTMILL_TABLE training_avx512
#include "training.inc"
