// Scale and minimum of a block: x ~ scale * level + minimum, levels from 0 on (make_qkx2_quants and make_qkx3_quants in
// llama.cpp, and src/format/gguf/blocks/search_qkx.rs).
#pragma once

#include "../arithmetic.cuh"

/// How a search goes about it.
struct AffineSearch {
    int max_level;
    /// The first factor tried takes the range of the block to max_level + first levels; the next ones grow by step.
    float first, step;
    int steps;
    /// Whether errors count by their magnitude rather than by their square.
    bool magnitude;
};

/// The search of all types that have an importance for each weight.
__device__ constexpr AffineSearch with_importance(int max_level) {
    return {max_level, -0.9f, 0.05f, 36, false};
}

struct Affine {
    /// The scale; zero for a block of equal weights.
    float scale;
    /// The minimum, negated.
    float min;
    /// How weights go to the levels that were found: nearest(factor * (x - offset)). Not a number for equal weights.
    float factor, offset;
};

__device__ inline float cost(float difference, bool magnitude) {
    return magnitude ? fabsf(difference) : difference * difference;
}

/// Scale and minimum that minimise the weighted error: each try rounds with another factor and fits a line to the levels
/// that this gives.
template <int L>
__device__ Affine search_affine(const float (&x)[L], const float (&w)[L], AffineSearch search) {
    float min = x[0], max = x[0];
    float sum_w = w[0], sum_x = w[0] * x[0];
#pragma unroll
    for (int i = 1; i < L; ++i) {
        min = x[i] < min ? x[i] : min;
        max = x[i] > max ? x[i] : max;
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    min = min > 0.0f ? 0.0f : min;
    if (!(max > min)) {
        return {0.0f, -min, __int_as_float(0x7fc00000), 0.0f};
    }
    float factor = static_cast<float>(search.max_level) / (max - min);
    float offset = min;
    float scale = 1.0f / factor;
    float best = 0.0f;
#pragma unroll
    for (int i = 0; i < L; ++i) {
        float l = static_cast<float>(nearest_within(factor * (x[i] - min), 0, search.max_level));
        best += w[i] * cost(scale * l + min - x[i], search.magnitude);
    }

#pragma unroll 1
    for (int step = 0; step <= search.steps; ++step) {
        float reach = search.first + search.step * static_cast<float>(step) + static_cast<float>(search.max_level);
        float tried = reach / (max - min);
        float levels[L];
        float sum_l = 0.0f, sum_l2 = 0.0f, sum_xl = 0.0f;
#pragma unroll
        for (int i = 0; i < L; ++i) {
            float l = static_cast<float>(nearest_within(tried * (x[i] - min), 0, search.max_level));
            levels[i] = l;
            float wl = w[i] * l;
            sum_l += wl;
            sum_l2 += wl * l;
            sum_xl += wl * x[i];
        }
        float determinant = sum_w * sum_l2 - sum_l * sum_l;
        if (!(determinant > 0.0f)) {
            continue;
        }
        float this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        float this_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
        if (this_min > 0.0f) {
            this_min = 0.0f;
            this_scale = sum_xl / sum_l2;
        }
        float error = 0.0f;
#pragma unroll
        for (int i = 0; i < L; ++i) {
            error += w[i] * cost(this_scale * levels[i] + this_min - x[i], search.magnitude);
        }
        if (error < best) {
            best = error;
            scale = this_scale;
            factor = tried;
            offset = min;
            min = this_min;
        }
    }
    return {scale, -min, factor, offset};
}
