// Arithmetic whose bits are those of the encoders on the CPU (src/format/gguf/blocks/lanes.rs, half_types.rs).
//
// Everything here is compiled with --fmad=false and correctly rounded division and square root: each operation rounds
// once, to nearest, as the CPU's does. A NaN has other bits on a GPU than on a CPU, so no code may depend on them.
#pragma once

#include <cstdint>

/// 1.5 * 2^23: a float of this size has no bits left for fractions, so adding it rounds to the nearest integer.
constexpr float MAGIC = 12582912.0f;

/// Blocks whose largest magnitude is below this are taken for zero (GROUP_MAX_EPS in llama.cpp).
constexpr float ZERO_BELOW = 1e-15f;

/// The nearest integer, ties to even, also where the argument is so large that the result is meaningless (nearest_int in
/// llama.cpp). A NaN gives 0, as the NaN of an x86 processor does.
__device__ inline int nearest(float v) {
    float sum = v + MAGIC;
    return sum != sum ? 0 : (__float_as_int(sum) & 0x007fffff) - 0x00400000;
}

/// The nearest integer, limited to lo..hi.
__device__ inline int nearest_within(float v, int lo, int hi) {
    return max(lo, min(hi, nearest(v)));
}

/// The float without its fraction, INT_MIN for what does not fit, as x86 converts.
__device__ inline int truncated(float v) {
    return v >= -2147483648.0f && v < 2147483648.0f ? static_cast<int>(v) : INT32_MIN;
}

/// 1 / v, 0 for 0.
__device__ inline float inverse(float v) {
    return v != 0.0f ? 1.0f / v : 0.0f;
}

/// Half precision, to nearest with ties to even. A NaN becomes the one that x86 makes of a result that is undefined.
__device__ inline uint16_t to_half(float v) {
    if (v != v) {
        return 0xfe00;
    }
    // Scaling up and down again turns what is too large for half precision into infinity.
    float base = (fabsf(v) * __uint_as_float(0x77800000u)) * __uint_as_float(0x08800000u);
    uint32_t bits = __float_as_uint(v);
    uint32_t exponent = max((bits << 1) & 0xff000000u, 0x71000000u);
    // The sum has the half's mantissa in its low bits, rounded by the addition.
    uint32_t sum = __float_as_uint(__uint_as_float((exponent >> 1) + 0x07800000u) + base);
    return static_cast<uint16_t>(((bits >> 16) & 0x8000u) | (((sum >> 13) & 0x7c00u) + (sum & 0x0fffu)));
}

/// The value of a half; exact.
__device__ inline float from_half(uint16_t half) {
    uint32_t shifted = static_cast<uint32_t>(half) << 16;
    uint32_t twice = shifted << 1;
    float normal = __uint_as_float((twice >> 4) + (0xe0u << 23)) * __uint_as_float(0x07800000u);
    float subnormal = __uint_as_float((twice >> 17) | (126u << 23)) - 0.5f;
    float magnitude = twice < (1u << 27) ? subnormal : normal;
    return __uint_as_float((shifted & 0x80000000u) | __float_as_uint(magnitude));
}

/// The largest magnitude, and the first value that has it.
struct Extreme {
    float magnitude, value;
};

template <int L>
__device__ inline Extreme extreme(const float (&x)[L]) {
    Extreme found = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < L; ++i) {
        float magnitude = fabsf(x[i]);
        if (magnitude > found.magnitude) {
            found = {magnitude, x[i]};
        }
    }
    return found;
}

/// The same of values in memory.
__device__ inline Extreme extreme(const float* x, int n) {
    Extreme found = {0.0f, 0.0f};
    for (int i = 0; i < n; ++i) {
        float magnitude = fabsf(x[i]);
        if (magnitude > found.magnitude) {
            found = {magnitude, x[i]};
        }
    }
    return found;
}

/// Sum of squares from the first to the last.
template <int L>
__device__ inline float sum_of_squares(const float (&x)[L]) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < L; ++i) {
        sum += x[i] * x[i];
    }
    return sum;
}

/// Sum from the first to the last.
template <int L>
__device__ inline float sum_of(const float (&v)[L]) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < L; ++i) {
        sum += v[i];
    }
    return sum;
}

/// The importance as most encoders use it: importance * sqrt(sigma2 + x * x).
template <int L>
__device__ inline void scale_importance(float (&w)[L], const float (&x)[L], float sigma2) {
#pragma unroll
    for (int i = 0; i < L; ++i) {
        w[i] = w[i] * sqrtf(sigma2 + x[i] * x[i]);
    }
}

/// Levels of the nearest multiples of scale, limited to lo..hi and shifted to start at zero.
template <int L>
__device__ inline void divide(const float (&x)[L], float scale, float minimum, int lo, int hi, uint8_t* levels) {
#pragma unroll
    for (int i = 0; i < L; ++i) {
        levels[i] = nearest_within((x[i] + minimum) / scale, lo, hi) - lo;
    }
}

/// Levels that a search found, limited to lo..hi and shifted to start at zero. A factor that is not a number stands for a
/// block whose levels are all zero after the shift.
template <int L>
__device__ inline void multiply(const float (&x)[L], float factor, float offset, int lo, int hi, uint8_t* levels) {
#pragma unroll
    for (int i = 0; i < L; ++i) {
        levels[i] = factor != factor ? 0 : nearest_within(factor * (x[i] - offset), lo, hi) - lo;
    }
}
