// Threads that share a row of weights, and the grid that its weights are rounded to.
//
// Rows do not depend on each other, but a matrix has too few of them for a GPU to give each a single thread. So eight threads
// share a row; values in shared memory that belong to a column are read and written by one of them alone, the column's number
// modulo eight, and what all need travels by shuffle. A sum over columns goes in their order, as on the CPU.
//
// A launch works on the rows of one problem, or on those of several that differ in numbers alone, such as the experts of a
// layer: each has as many rows, padded with rows of zeros to a multiple of 16, so that no team is without one and none of a
// thread block has rows of another problem.
#pragma once

#include "../arithmetic.cuh"

constexpr unsigned TEAM = 8;
constexpr unsigned ALL = 0xffffffffu;

/// Columns whose terms are in shared memory at a time while a sum is taken.
constexpr unsigned TERMS = 64;

/// Floats of a row's terms: two sums at a time. Rows are 8 banks apart, so that the teams of a warp use all 32.
constexpr unsigned TERMS_STRIDE = 2 * TERMS + 8;

/// The grid, as the host passes it.
struct Grid {
    unsigned bits, group_size, symmetric, lowest_zero;

    __device__ float max_code() const { return static_cast<float>((1u << bits) - 1); }
    __device__ float middle() const { return static_cast<float>(1u << (bits - 1)); }
};

/// A thread's place.
struct Member {
    unsigned lane, team, row;

    __device__ Member() :
        lane(threadIdx.x % TEAM), team(threadIdx.x / TEAM), row(blockIdx.x * (blockDim.x / TEAM) + team) {}

    /// The problem that the row belongs to, of those with so many rows each.
    __device__ size_t problem(unsigned rows) const { return row / rows; }

    /// Whether a column is this thread's.
    __device__ bool owns(unsigned column) const { return column % TEAM == lane; }

    /// The first column of this thread from `column` on.
    __device__ unsigned first(unsigned column) const { return column + ((lane - column) & (TEAM - 1)); }
};

/// The value that the owner of a column has.
__device__ inline float from_owner(float value, unsigned column) {
    return __shfl_sync(ALL, value, column % TEAM, TEAM);
}

/// The nearest whole number, limited to low..high; low for NaN (Lanes::round_within).
__device__ inline float round_within(float v, float low, float high) {
    float at_least = v > low ? v : low;
    float within = at_least < high ? at_least : high;
    return (within + MAGIC) - MAGIC;
}

/// The nearest half that can be a scale: neither 0 nor infinite (stored in scale_search.rs). The sign of a NaN is the one of a
/// result that is undefined on x86.
__device__ inline float stored(float scale) {
    unsigned half = to_half(scale) & 0x7fffu;
    bool nan = scale != scale;
    half = nan ? 1u : min(max(half, 1u), 0x7bffu);
    return copysignf(from_half(static_cast<uint16_t>(half)), nan ? -1.0f : scale);
}

/// A scale with its zero point (Scale in scale_search.rs).
struct Scale {
    float scale, inverse, low, high;

    __device__ Scale(float scale, float zero, const Grid& grid) :
        scale(scale), inverse(1.0f / scale), low(-zero), high(grid.max_code() - zero) {}

    /// The code of a weight, less the zero point.
    __device__ float code(float weight) const { return round_within(weight * inverse, low, high); }
};

/// Two sums over columns from `first` to `end`, in their order; `term` gives the terms of a column.
template <class Term>
__device__ inline float2 sum_columns(const Member& me, float* terms, unsigned first, unsigned end, Term term) {
    float sum = 0.0f;
    for (unsigned start = first; start < end; start += TERMS) {
        unsigned stop = min(start + TERMS, end);
        for (unsigned column = me.first(start); column < stop; column += TEAM) {
            float2 both = term(column);
            terms[column - start] = both.x;
            terms[TERMS + column - start] = both.y;
        }
        __syncwarp();
        if (me.lane < 2) {
            for (unsigned i = 0; i < stop - start; ++i) {
                sum += terms[me.lane * TERMS + i];
            }
        }
        __syncwarp();
    }
    return make_float2(from_owner(sum, 0), from_owner(sum, 1));
}
