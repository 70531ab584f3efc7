#define GRISTMILL_TABLE training_avx2
#include "training.inc"
