// AWQ: factors of channels and ranges of groups, scored through the Gram matrix, as src/quant/awq finds them, bit for bit.
//
// Everything else that AWQ needs of a matrix is GPTQ's (gptq.cu): the first scales, rounding, errors, the result.
#include "awq/clip.cuh"
#include "awq/score.cuh"
