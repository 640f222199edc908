// The scale and zero point of a group, as src/quant/scale_search.rs searches them.
#pragma once

#include "team.cuh"

/// Scales that are tried for each end of the grid, as shares of the one that just covers the group.
constexpr unsigned CANDIDATES = 28;
constexpr float WIDEST = 1.08f;
constexpr int REFINEMENTS = 3;
/// Candidates of a thread.
constexpr unsigned OWN = (CANDIDATES + TEAM - 1) / TEAM;

struct Found {
    float scale, zero;
};

/// The best candidate so far.
struct Best {
    float merit, scale, zero;
    /// Its number: of two that are equally good the first wins.
    unsigned number;

    __device__ void take_better_of_team() {
#pragma unroll
        for (unsigned distance = TEAM / 2; distance > 0; distance /= 2) {
            Best other = {
                __shfl_xor_sync(ALL, merit, distance, TEAM), __shfl_xor_sync(ALL, scale, distance, TEAM),
                __shfl_xor_sync(ALL, zero, distance, TEAM), __shfl_xor_sync(ALL, number, distance, TEAM)
            };
            if (other.merit > merit || (other.merit == merit && other.number < number)) {
                *this = other;
            }
        }
    }
};

/// The weight of largest magnitude, the first of several; 0 if there is none above 0.
__device__ inline float largest_of_team(const Member& me, const float* weights, unsigned count) {
    Best best = {0.0f, 0.0f, 0.0f, count};
    for (unsigned i = me.lane; i < count; i += TEAM) {
        float magnitude = fabsf(weights[i]);
        if (magnitude > best.merit) {
            best = {magnitude, weights[i], 0.0f, i};
        }
    }
    best.take_better_of_team();
    return best.scale;
}

/// The largest weight and the smallest, 0 among them.
__device__ inline float2 range_of_team(const Member& me, const float* weights, unsigned count) {
    float high = 0.0f, low = 0.0f;
    for (unsigned i = me.lane; i < count; i += TEAM) {
        high = weights[i] > high ? weights[i] : high;
        low = weights[i] < low ? weights[i] : low;
    }
#pragma unroll
    for (unsigned distance = TEAM / 2; distance > 0; distance /= 2) {
        float other = __shfl_xor_sync(ALL, high, distance, TEAM);
        high = other > high ? other : high;
        other = __shfl_xor_sync(ALL, low, distance, TEAM);
        low = other < low ? other : low;
    }
    return make_float2(high, low);
}

/// Tries shares of a scale; each thread some of them.
__device__ inline void try_shrunk(
    const Member& me, const float* weights, const float* importance, unsigned count, const Grid& grid, float whole,
    float zero, unsigned pass, Best& best
) {
    float narrowest = grid.bits == 2 ? 0.3f : grid.bits == 3 ? 0.45f : grid.bits == 4 ? 0.55f : 0.8f;
    whole = fabsf(whole) > 1.17549435e-38f ? whole : 1.0f;
    float inverse[OWN], numerator[OWN], denominator[OWN];
#pragma unroll
    for (unsigned k = 0; k < OWN; ++k) {
        float share = WIDEST - (WIDEST - narrowest) * static_cast<float>(me.lane + k * TEAM) / (CANDIDATES - 1);
        inverse[k] = 1.0f / (whole * share);
        numerator[k] = denominator[k] = 0.0f;
    }
    float low = -zero, high = grid.max_code() - zero;
    for (unsigned i = 0; i < count; ++i) {
        float weight = weights[i], matters = importance[i];
#pragma unroll
        for (unsigned k = 0; k < OWN; ++k) {
            float code = round_within(weight * inverse[k], low, high);
            float weighted = matters * code;
            numerator[k] += weighted * weight;
            denominator[k] += weighted * code;
        }
    }
#pragma unroll
    for (unsigned k = 0; k < OWN; ++k) {
        unsigned number = me.lane + k * TEAM;
        float merit = numerator[k] * numerator[k] / denominator[k];
        if (number < CANDIDATES && merit > best.merit) {
            best = {merit, numerator[k] / denominator[k], zero, pass * CANDIDATES + number};
        }
    }
}

/// Searches the scale of a group; all threads of the warp come here, with as many weights each. `terms` is the row's.
__device__ inline Found search_scale(
    const Member& me, const float* weights, const float* importance, unsigned count, const Grid& grid, float* terms
) {
    Best best = {-1.0f, 1.0f, 0.0f, 0xffffffffu};
    if (grid.symmetric) {
        best.zero = grid.middle();
        float largest = largest_of_team(me, weights, count);
        for (unsigned pass = 0; pass < 2; ++pass) {
            float end = pass == 0 ? -grid.middle() : grid.max_code() - grid.middle();
            try_shrunk(me, weights, importance, count, grid, largest / end, grid.middle(), pass, best);
        }
    } else {
        float2 range = range_of_team(me, weights, count);
        float top = grid.max_code(), lowest = static_cast<float>(grid.lowest_zero);
        float whole = (range.x - range.y) / top;
        float ratio = whole > 1.17549435e-38f ? -range.y / whole : 0.0f;
        float middle = round_within(ratio, lowest, top);
        best.zero = middle;
        for (unsigned pass = 0; pass < 3; ++pass) {
            float shifted = middle + (pass == 0 ? 0.0f : pass == 1 ? -1.0f : 1.0f);
            float zero = shifted > lowest ? shifted : lowest;
            zero = zero < top ? zero : top;
            try_shrunk(me, weights, importance, count, grid, whole, zero, pass, best);
        }
    }
    best.take_better_of_team();
    float scale = stored(best.scale);
    for (int i = 0; i < REFINEMENTS; ++i) {
        Scale present(scale, best.zero, grid);
        float2 fit = sum_columns(me, terms, 0, count, [&](unsigned column) {
            float code = present.code(weights[column]);
            float weighted = importance[column] * code;
            return make_float2(weighted * weights[column], weighted * code);
        });
        scale = stored(fit.y > 0.0f ? fit.x / fit.y : scale);
    }
    return {scale, best.zero};
}
