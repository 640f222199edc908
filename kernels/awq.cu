// AWQ: factors of channels and ranges of groups, scored through the Gram matrix, as src/quant/awq finds them, bit for bit.
//
// The first scales, rounding, errors and the result are those of affine.cu.
#include "awq/clip.cuh"
#include "awq/score.cuh"
