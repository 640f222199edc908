// GGML blocks from rows of float32 weights, byte for byte as src/format/gguf/blocks encodes them.
//
// x            [rows, columns] float32, finite
// importance   [columns] float32, for kernels whose name ends in _imatrix; else not read
// mean_squares [rows] float32, from kquant_mean_squares; for Q4_0, Q4_1, Q5_0 and Q5_1 with importance; else not read
// out          blocks * bytes of a block
//
// Launch: 128 threads, ceil(sub-blocks / 128) thread blocks, where a sub-block is 16 weights (Q2_K, Q3_K, Q6_K) or 32. No
// dynamic shared memory. All pointers are aligned to 16 bytes.
#include "kquant/blocks_of_256.cuh"
#include "kquant/blocks_of_32.cuh"
#include "kquant/iq4.cuh"

#define KQUANT(name, encode)                                                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS) kquant_##name(                                              \
        const float* x, const float* importance, const float* mean_squares, unsigned columns, unsigned blocks,        \
        uint8_t* out                                                                                                  \
    ) {                                                                                                               \
        encode({x, importance, mean_squares, columns, blocks}, out);                                                  \
    }

#define KQUANT_PAIR(name, encode, Type)                                                                               \
    KQUANT(name, encode<Type<false>>)                                                                                 \
    KQUANT(name##_imatrix, encode<Type<true>>)

KQUANT(q8_0, encode_blocks_of_32<Q8_0>)
KQUANT_PAIR(q4_0, encode_blocks_of_32, Q4_0)
KQUANT_PAIR(q5_0, encode_blocks_of_32, Q5_0)
KQUANT_PAIR(q4_1, encode_blocks_of_32, Q4_1)
KQUANT_PAIR(q5_1, encode_blocks_of_32, Q5_1)
KQUANT_PAIR(q2_k, encode_blocks_of_256, Q2_K)
KQUANT_PAIR(q3_k, encode_blocks_of_256, Q3_K)
KQUANT_PAIR(q4_k, encode_blocks_of_256, Q4_K)
KQUANT_PAIR(q5_k, encode_blocks_of_256, Q5_K)
KQUANT_PAIR(q6_k, encode_blocks_of_256, Q6_K)
KQUANT_PAIR(iq4_nl, encode_iq4, IQ4_NL)
KQUANT_PAIR(iq4_xs, encode_iq4, IQ4_XS)

/// The mean square of each row, summed from left to right: one thread for each of 128 rows, which come through a tile of 32
/// columns at a time.
///
/// x [rows, columns] float32, means [rows] float32. Launch: 128 threads, ceil(rows / 128) thread blocks.
extern "C" __global__ void __launch_bounds__(THREADS)
    kquant_mean_squares(const float* x, unsigned columns, unsigned rows, float* means) {
    __shared__ float tile[THREADS * 33];
    unsigned first = blockIdx.x * THREADS;
    unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    bool active = first + threadIdx.x < rows;
    float sum = 0.0f;
    for (unsigned column = 0; column < columns; column += 32) {
        for (unsigned row = warp; row < THREADS; row += THREADS / 32) {
            if (first + row < rows) {
                tile[row * 33 + lane] = x[static_cast<size_t>(first + row) * columns + column + lane];
            }
        }
        __syncthreads();
        if (active) {
            for (unsigned i = 0; i < 32; ++i) {
                float v = tile[threadIdx.x * 33 + i];
                sum += v * v;
            }
        }
        __syncthreads();
    }
    if (active) {
        means[first + threadIdx.x] = sum / static_cast<float>(columns);
    }
}
