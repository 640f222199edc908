// The exponential function and what is made of it, as src/arch/decoder/exp.rs has them, bit for bit but for NaN.
#pragma once

#include "arithmetic.cuh"

/// e^x by Cody and Waite's reduction and the series to the seventh power; the smallest normal number below -87.3, infinity
/// above 88.3.
__device__ inline float exponential(float x) {
    x = x < -87.3f ? -87.3f : x;
    x = x > 89.0f ? 89.0f : x;
    float shifted = x * 1.44269504088896340736f + MAGIC;
    float n = shifted - MAGIC;
    float r = (x - n * 0.6933594f) - n * -2.1219444e-4f;
    float series = 1.0f / 5040.0f;
    series = series * r + 1.0f / 720.0f;
    series = series * r + 1.0f / 120.0f;
    series = series * r + 1.0f / 24.0f;
    series = series * r + 1.0f / 6.0f;
    series = series * r + 0.5f;
    series = series * (r * r) + r + 1.0f;
    return series * __uint_as_float((__float_as_uint(shifted) + 127u) << 23);
}

__device__ inline float hyperbolic_tangent(float x) {
    return 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f);
}

__device__ inline float silu(float x) {
    return x / (1.0f + exponential(-x));
}

/// gelu by the hyperbolic tangent.
__device__ inline float gelu_tanh(float x) {
    return 0.5f * x * (1.0f + hyperbolic_tangent(0.7978846f * (x + 0.044715f * x * x * x)));
}
