// The Gram matrix of what goes into a linear layer, as src/quant/gram.rs sums it up, bit for bit.
#include "product.cuh"

/// gram += x^T * x, the upper triangle; what lies below the diagonal counts only in tiles that the diagonal goes through.
///
/// x     [tokens, size] float32, of which tokens start..end are added, at most one chunk
/// gram  [size, size] float32
///
/// Launch: 64 threads; ceil(size / 64) squared thread blocks, of which nearly half have nothing to do.
extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS)
    gram_add(const float* x, unsigned start, unsigned end, unsigned size, float* gram) {
    if (blockIdx.x < blockIdx.y) {
        return;
    }
    Factor<Lies::Across> factor = {x, size, size};
    product_tile(factor, factor, blockIdx.y * TILE, blockIdx.x * TILE, start, end, [&](unsigned row, unsigned column, float sum) {
        float* to = gram + static_cast<size_t>(row) * size + column;
        *to = *to + sum;
    });
}
