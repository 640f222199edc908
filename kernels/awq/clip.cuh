// The range of a group, all other groups being as they are (src/quant/awq/clip.rs).
#pragma once

#include "products.cuh"

/// Ranges that are tried, as shares of the one that a group has, with each of three zero points.
constexpr float WIDEST = 1.12f, NARROWEST = 0.88f;
constexpr unsigned CANDIDATES = 40;
constexpr int REFINEMENTS = 2;

/// A row's values of a group, one per column.
struct ClipRow {
    /// The errors that four candidates leave.
    float4* errors;
    float *weights, *pull, *terms;
};

/// The best candidate so far, the same in all threads of a team.
struct Range {
    float cost, scale, zero;

    /// Judges four candidates, of which the first `count` count, one after the other. `scale` and `zero` are those of this
    /// thread's candidate, its lane modulo 4.
    __device__ void judge(
        const Member& me, const Gram& gram, const ClipRow& row, float own_scale, float own_zero, unsigned count,
        const Grid& grid
    ) {
#pragma unroll
        for (unsigned c = 0; c < BATCH; ++c) {
            Scale tried(from_owner(own_scale, c), from_owner(own_zero, c), grid);
            for (unsigned i = me.lane; i < gram.length; i += TEAM) {
                float weight = row.weights[i];
                reinterpret_cast<float*>(row.errors + i)[c] = weight - tried.scale * tried.code(weight);
            }
        }
        __syncwarp();
        float own_cost = quadratic_forms(me, gram, row.errors, row.pull, row.terms);
        for (unsigned c = 0; c < count; ++c) {
            float new_cost = from_owner(own_cost, c), new_scale = from_owner(own_scale, c);
            float new_zero = from_owner(own_zero, c);
            if (cost > new_cost) {
                *this = {new_cost, new_scale, new_zero};
            }
        }
    }
};

/// The scale that is best for the codes of a range.
__device__ inline float refit(const Member& me, const Gram& gram, const ClipRow& row, const Range& range, const Grid& grid) {
    Scale scale(range.scale, range.zero, grid);
    // Codes in place of the first candidate's errors, the errors in place of the second's.
    for (unsigned i = me.lane; i < gram.length; i += TEAM) {
        float code = scale.code(row.weights[i]);
        row.errors[i] = make_float4(code, row.weights[i] - scale.scale * code, 0.0f, 0.0f);
    }
    __syncwarp();
    float sum = 0.0f;
    for (unsigned start = 0; start < gram.length; start += PASS) {
        unsigned column = start + 4 * me.lane;
        if (column < gram.length) {
            Products products = multiply(gram, row.errors, column);
#pragma unroll
            for (unsigned i = 0; i < 4; ++i) {
                if (column + i < gram.length) {
                    float4 value = row.errors[column + i];
                    // Two terms of the slope, then that of the bend.
                    row.terms[4 * me.lane + i] = value.y * products.of[i][0];
                    row.terms[PASS + 4 * me.lane + i] = value.x * row.pull[column + i];
                    row.terms[2 * PASS + 4 * me.lane + i] = value.x * products.of[i][0];
                }
            }
        }
        __syncwarp();
        unsigned count = min(PASS, gram.length - start);
        if (me.lane == 0) {
            for (unsigned i = 0; i < count; ++i) {
                sum = sum + row.terms[i] + row.terms[PASS + i];
            }
        } else if (me.lane == 1) {
            for (unsigned i = 0; i < count; ++i) {
                sum += row.terms[2 * PASS + i];
            }
        }
        __syncwarp();
    }
    float slope = from_owner(sum, 0), bend = from_owner(sum, 1);
    return stored(bend > 0.0f ? range.scale + slope / bend : range.scale);
}

/// Gives each row the best range for one group.
///
/// weights, codes (less their zero points), errors [rows, size] float32; scales, zeros [rows, groups] float32
/// product  [rows, columns of the group] float32: all errors times the Hessian
/// grams    [problems, groups, group_size, stride] float32
///
/// Launch: teams, rows / teams thread blocks. Dynamic shared memory: 4 * (6 * padded + 136) bytes a row, as for awq_score.
extern "C" __global__ void __launch_bounds__(128, 4) awq_clip_group(
    const float* weights, const float* product, const float* grams, unsigned problem_rows, unsigned size, unsigned group,
    unsigned stride, unsigned padded, Grid grid, float* codes, float* errors, float* scales, float* zeros
) {
    extern __shared__ __align__(16) float shared[];
    Member me;
    unsigned teams = blockDim.x / TEAM;
    ClipRow row = {
        reinterpret_cast<float4*>(shared) + me.team * padded, shared + 4 * teams * padded + me.team * padded,
        shared + 5 * teams * padded + me.team * padded, shared + 6 * teams * padded + me.team * BATCH_TERMS
    };
    unsigned start = group * grid.group_size, count = min(grid.group_size, size - start);
    unsigned groups = (size + grid.group_size - 1) / grid.group_size;
    size_t place = me.problem(problem_rows) * groups + group;
    Gram gram = {grams + place * grid.group_size * stride, count, stride};
    size_t first = static_cast<size_t>(me.row) * size + start;
    size_t at = static_cast<size_t>(me.row) * groups + group;
    for (unsigned i = me.lane; i < count; i += TEAM) {
        row.weights[i] = weights[first + i];
        row.errors[i] = make_float4(errors[first + i], 0.0f, 0.0f, 0.0f);
    }
    __syncwarp();
    // The errors of all other groups times the Hessian.
    for (unsigned column = 4 * me.lane; column < count; column += PASS) {
        Products own = multiply(gram, row.errors, column);
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) {
            if (column + i < count) {
                row.pull[column + i] = product[static_cast<size_t>(me.row) * count + column + i] - own.of[i][0];
            }
        }
    }
    __syncwarp();
    float scale = scales[at], zero = zeros[at], top = grid.max_code();
    Range best = {__int_as_float(0x7f800000), scale, zero};
    best.judge(me, gram, row, scale, zero, 1, grid);
    for (unsigned shift = 0; shift < 3; ++shift) {
        float shifted = zero + (shift == 0 ? 0.0f : shift == 1 ? -1.0f : 1.0f);
        shifted = shifted < 0.0f ? 0.0f : shifted > top ? top : shifted;
        for (unsigned i = 0; i < CANDIDATES; i += BATCH) {
            float step = (WIDEST - NARROWEST) / static_cast<float>(CANDIDATES - 1);
            float share = WIDEST - step * static_cast<float>(i + me.lane % BATCH);
            best.judge(me, gram, row, stored(scale * share), shifted, BATCH, grid);
        }
    }
    for (int i = 0; i < REFINEMENTS; ++i) {
        float refined = refit(me, gram, row, best, grid);
        best.judge(me, gram, row, refined, best.zero, 1, grid);
    }
    Scale found(best.scale, best.zero, grid);
    for (unsigned i = me.lane; i < count; i += TEAM) {
        float code = found.code(row.weights[i]);
        codes[first + i] = code;
        errors[first + i] = row.weights[i] - found.scale * code;
    }
    if (me.lane == 0) {
        scales[at] = best.scale;
        zeros[at] = best.zero;
    }
}
