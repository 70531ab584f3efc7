#define GRISTMILL_TABLE training_plain
#include "training.inc"
