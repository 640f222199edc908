// How well a group's part of the weights is kept with factors for its channels (src/quant/awq/scales.rs).
#pragma once

#include "products.cuh"

/// Ranges that are tried with each candidate, as shares of the one that just covers the group: one for each of the first six
/// threads of a team, and the last one again for the others.
constexpr unsigned SHARES = 6;

__device__ inline float share_of(unsigned i) {
    return i == 0 ? 1.0f : i == 1 ? 0.94f : i == 2 ? 0.88f : i == 3 ? 0.82f : i == 4 ? 0.76f : 0.7f;
}

/// The best of a few ranges, each channel looked at by itself.
__device__ inline Scale best_range(
    const Member& me, const float* weights, const float* importance, unsigned count, const Grid& grid
) {
    float low = 0.0f, high = 0.0f;
    for (unsigned i = me.lane; i < count; i += TEAM) {
        low = weights[i] < low ? weights[i] : low;
        high = weights[i] > high ? weights[i] : high;
    }
#pragma unroll
    for (unsigned distance = TEAM / 2; distance > 0; distance /= 2) {
        float other = __shfl_xor_sync(ALL, low, distance, TEAM);
        low = other < low ? other : low;
        other = __shfl_xor_sync(ALL, high, distance, TEAM);
        high = other > high ? other : high;
    }
    float whole = (high - low) / grid.max_code();
    whole = whole > 1.17549435e-38f ? whole : 1.0f;
    float zero = round_within(-low / whole, 0.0f, grid.max_code());
    Scale tried(stored(whole * share_of(me.lane)), zero, grid);
    float error = 0.0f;
    for (unsigned i = 0; i < count; ++i) {
        float difference = weights[i] - tried.scale * tried.code(weights[i]);
        error += difference * difference * importance[i];
    }
    float best = stored(whole), smallest = __int_as_float(0x7f800000);
#pragma unroll
    for (unsigned i = 0; i < SHARES; ++i) {
        float other = from_owner(error, i), scale = from_owner(tried.scale, i);
        best = smallest > other ? scale : best;
        smallest = smallest > other ? other : smallest;
    }
    return Scale(best, zero, grid);
}

/// The error of the outputs that each group of each row makes by itself, for each candidate.
///
/// weights [rows, size], factors [candidates, size], grams [groups, group_size, stride] float32; rows are padded with zeros.
/// out     [candidates, groups, rows] float32
///
/// Launch: teams, rows / teams x groups x ceil(candidates / 4) thread blocks. Dynamic shared memory:
/// 4 * (6 * padded + 136) bytes a row, where `padded` is the columns of a group rounded up to 8 more than a multiple of 32.
extern "C" __global__ void __launch_bounds__(128) awq_score(
    const float* weights, const float* factors, const float* grams, unsigned rows, unsigned size, unsigned candidates,
    unsigned stride, unsigned padded, Grid grid, float* out
) {
    extern __shared__ __align__(16) float shared[];
    Member me;
    unsigned teams = blockDim.x / TEAM;
    float4* errors = reinterpret_cast<float4*>(shared) + me.team * padded;
    float* scaled = shared + 4 * teams * padded + me.team * padded;
    float* importance = shared + 5 * teams * padded + me.team * padded;
    float* terms = shared + 6 * teams * padded + me.team * BATCH_TERMS;
    unsigned group = blockIdx.y, start = group * grid.group_size, count = min(grid.group_size, size - start);
    Gram gram = {grams + static_cast<size_t>(group) * grid.group_size * stride, count, stride};
    const float* row = weights + static_cast<size_t>(me.row) * size + start;
    unsigned first = blockIdx.z * BATCH;
    for (unsigned c = 0; c < BATCH; ++c) {
        // Those beyond the last are the last one again.
        const float* factor = factors + static_cast<size_t>(min(first + c, candidates - 1)) * size + start;
        for (unsigned i = me.lane; i < count; i += TEAM) {
            scaled[i] = row[i] * factor[i];
            importance[i] = gram.values[i * (stride + 1)] / (factor[i] * factor[i]);
        }
        __syncwarp();
        Scale scale = best_range(me, scaled, importance, count, grid);
        __syncwarp();
        for (unsigned i = me.lane; i < count; i += TEAM) {
            reinterpret_cast<float*>(errors + i)[c] = (scaled[i] - scale.scale * scale.code(scaled[i])) / factor[i];
        }
    }
    __syncwarp();
    float error = quadratic_forms(me, gram, errors, nullptr, terms);
    if (me.lane < BATCH && first + me.lane < candidates) {
        out[(static_cast<size_t>(first + me.lane) * gridDim.y + group) * rows + me.row] = error;
    }
}
