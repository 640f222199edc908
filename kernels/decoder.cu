// What a decoder's layer does between its products (gemm.cu), as src/arch/decoder has it, bit for bit but for NaN: norm,
// rotation, softmax of attention, gate, sums, experts' rows, and which rows are finite.
//
// All matrices are row-major float32. A row is shared by 16 threads, since the CPU adds up 16 sums side by side: each thread
// has one of them, and all 16 are added in order at the end. Every kernel is bound by memory: neighbouring threads read
// neighbouring values.
#include "exp.cuh"

constexpr unsigned SIDE = 16;
constexpr unsigned THREADS = 128;
constexpr unsigned ROWS = THREADS / SIDE; // of a thread block
constexpr unsigned EVERY = 0xffffffffu;

/// A thread's place in rows.
struct Place {
    unsigned lane, row;
    bool there;

    /// Threads without a row go through the first, so that shuffles find all of a warp, and write nothing.
    __device__ explicit Place(unsigned rows) : lane(threadIdx.x % SIDE), row(blockIdx.x * ROWS + threadIdx.x / SIDE), there(row < rows) {
        row = there ? row : 0;
    }
};

/// The values of all lanes, added from the first to the last.
__device__ inline float in_order(float side) {
    float sum = __shfl_sync(EVERY, side, 0, SIDE);
#pragma unroll
    for (unsigned lane = 1; lane < SIDE; ++lane) {
        sum += __shfl_sync(EVERY, side, lane, SIDE);
    }
    return sum;
}

/// out = x / sqrt(mean(x^2) + epsilon) * weight, each row by itself.
///
/// x, out [rows, width], weight [width]. Launch: 128 threads, ceil(rows / 8) thread blocks.
extern "C" __global__ void __launch_bounds__(THREADS)
    decoder_norm(const float* x, const float* weight, float epsilon, unsigned rows, unsigned width, float* out) {
    Place me(rows);
    size_t start = static_cast<size_t>(me.row) * width;
    unsigned whole = width / SIDE * SIDE;
    float side = 0.0f, rest = 0.0f;
    for (unsigned i = me.lane; i < whole; i += SIDE) {
        side += x[start + i] * x[start + i];
    }
    for (unsigned i = whole; i < width; ++i) {
        rest += x[start + i] * x[start + i];
    }
    float sum = in_order(side) + rest;
    float factor = 1.0f / sqrtf(sum / static_cast<float>(width) + epsilon);
    for (unsigned i = me.lane; me.there && i < width; i += SIDE) {
        out[start + i] = x[start + i] * factor * weight[i];
    }
}

/// Rotates the first 2 * half values of each head: the first half of them pairs with the second.
///
/// x, out [rows, columns], of heads of head_dim values; cos, sin [positions, half]. Launch: 128 threads, one for each value.
extern "C" __global__ void __launch_bounds__(THREADS) decoder_rotate(
    const float* x, const float* cos, const float* sin, unsigned positions, unsigned half, unsigned head_dim,
    unsigned columns, size_t values, float* out
) {
    size_t at = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (at >= values) {
        return;
    }
    unsigned place = static_cast<unsigned>(at % columns) % head_dim;
    const float *c = cos + at / columns % positions * half, *s = sin + at / columns % positions * half;
    float v = x[at];
    if (place < half) {
        v = v * c[place] - x[at + half] * s[place];
    } else if (place < 2 * half) {
        v = v * c[place - half] + x[at - half] * s[place - half];
    }
    out[at] = v;
}

/// What becomes of scores.
struct Softmax {
    float scale, soft_cap;
    unsigned capped;   // whether scores go through soft_cap * tanh(score / soft_cap)
    unsigned sequence; // queries and keys of a head
    unsigned window;   // keys that a query sees, itself included; 0 for all
};

/// Softmax of each row over the keys that its query may see, in place; zeros elsewhere.
///
/// scores [rows, sequence], where row r is query r % sequence. Launch: 128 threads, ceil(rows / 8) thread blocks.
extern "C" __global__ void __launch_bounds__(THREADS) decoder_softmax(float* scores, unsigned rows, Softmax softmax) {
    Place me(rows);
    unsigned end = me.row % softmax.sequence + 1;
    unsigned first = softmax.window != 0 && end > softmax.window ? end - softmax.window : 0;
    // The first row is another thread's if this one has none.
    end = me.there ? end : first;
    float* row = scores + static_cast<size_t>(me.row) * softmax.sequence;
    float largest = -INFINITY;
    for (unsigned i = first + me.lane; i < end; i += SIDE) {
        float v = row[i] * softmax.scale;
        v = softmax.capped != 0 ? hyperbolic_tangent(v / softmax.soft_cap) * softmax.soft_cap : v;
        row[i] = v;
        largest = v > largest ? v : largest;
    }
#pragma unroll
    for (unsigned distance = SIDE / 2; distance > 0; distance /= 2) {
        float other = __shfl_xor_sync(EVERY, largest, distance, SIDE);
        largest = other > largest ? other : largest;
    }
    unsigned whole = first + (end - first) / SIDE * SIDE;
    float side = 0.0f, last = 0.0f;
    for (unsigned i = first + me.lane; i < end; i += SIDE) {
        float v = exponential(row[i] - largest);
        row[i] = v;
        if (i < whole) {
            side += v;
        } else {
            last = v;
        }
    }
    float sum = in_order(side);
#pragma unroll
    for (unsigned lane = 0; lane < SIDE - 1; ++lane) {
        float v = __shfl_sync(EVERY, last, lane, SIDE);
        sum = whole + lane < end ? sum + v : sum;
    }
    for (unsigned i = first + me.lane; i < end; i += SIDE) {
        row[i] = row[i] / sum;
    }
    for (unsigned i = me.lane; me.there && i < first; i += SIDE) {
        row[i] = 0.0f;
    }
    for (unsigned i = end + me.lane; me.there && i < softmax.sequence; i += SIDE) {
        row[i] = 0.0f;
    }
}

/// out = silu(gate) * up. Launch: 128 threads, one for each value.
extern "C" __global__ void __launch_bounds__(THREADS)
    decoder_gate_silu(const float* gate, const float* up, size_t values, float* out) {
    size_t at = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (at < values) {
        out[at] = silu(gate[at]) * up[at];
    }
}

/// out = gelu(gate) * up. Launch: as decoder_gate_silu.
extern "C" __global__ void __launch_bounds__(THREADS)
    decoder_gate_gelu(const float* gate, const float* up, size_t values, float* out) {
    size_t at = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (at < values) {
        out[at] = gelu_tanh(gate[at]) * up[at];
    }
}

/// out = a + b. Launch: as decoder_gate_silu.
extern "C" __global__ void __launch_bounds__(THREADS)
    decoder_add(const float* a, const float* b, size_t values, float* out) {
    size_t at = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (at < values) {
        out[at] = a[at] + b[at];
    }
}

/// out[i] = x[rows[i]], rows of so many columns; `values` is the size of out. Launch: as decoder_gate_silu.
extern "C" __global__ void __launch_bounds__(THREADS)
    decoder_select(const float* x, const unsigned* rows, unsigned columns, size_t values, float* out) {
    size_t at = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (at < values) {
        out[at] = x[static_cast<size_t>(rows[at / columns]) * columns + at % columns];
    }
}

/// sum[rows[i]] += x[i] * weights[i], rows of so many columns, each of which is named once; `values` is the size of x.
/// Launch: as decoder_gate_silu.
extern "C" __global__ void __launch_bounds__(THREADS) decoder_add_rows(
    const float* x, const unsigned* rows, const float* weights, unsigned columns, size_t values, float* sum
) {
    size_t at = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (at < values) {
        size_t i = at / columns;
        float* to = sum + static_cast<size_t>(rows[i]) * columns + at % columns;
        *to = *to + x[at] * weights[i];
    }
}

/// finite[r] = 1 if all values of row r are finite, else 0.
///
/// x [rows, columns]. Launch: 128 threads, ceil(rows / 8) thread blocks.
extern "C" __global__ void __launch_bounds__(THREADS)
    decoder_finite_rows(const float* x, unsigned rows, unsigned columns, unsigned char* finite) {
    Place me(rows);
    size_t start = static_cast<size_t>(me.row) * columns;
    int all = 1;
    for (unsigned i = me.lane; i < columns; i += SIDE) {
        all &= fabsf(x[start + i]) < INFINITY ? 1 : 0;
    }
#pragma unroll
    for (unsigned distance = SIDE / 2; distance > 0; distance /= 2) {
        all &= __shfl_xor_sync(EVERY, all, distance, SIDE);
    }
    if (me.there && me.lane == 0) {
        finite[me.row] = static_cast<unsigned char>(all);
    }
}
