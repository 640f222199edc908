// Coordinate descent: codes, scales and zero points of a block improved in turn (src/quant/gptq/descent.rs).
#pragma once

#include "../rows/team.cuh"

/// How often the codes of a block, and then its scales, are gone through.
constexpr int TURNS = 2;

/// What a block of columns is made of.
struct DescentBlock {
    /// [rows, size].
    const float* weights;
    /// [rows, length]: the errors times the Hessian.
    const float* product;
    /// [problems, size, size].
    const float* hessian;
    /// [problems, groups, length] and [problems, groups] of the block's groups: sums over the Hessian (GroupSums in
    /// descent.rs); null for symmetric grids.
    const float *row_sums, *totals;
    unsigned problem_rows, size, start, length;
    /// Whether scales are improved too: all of the groups lie in the block.
    unsigned refit;

    /// Leaves the matrices of one problem. Weights and product are those of all rows.
    __device__ void select(size_t problem, unsigned groups) {
        hessian += problem * size * size;
        row_sums += problem * groups * length;
        totals += problem * groups;
    }
};

/// What is improved, in the order of columns: codes and errors [rows, size], scales and zero points [rows, groups].
struct Improved {
    float *codes, *errors, *scales, *zeros;
};

/// Values of a row, one per column of the block.
struct DescentRow {
    float *codes, *gradient, *curvature, *terms;
};

/// Gives each code of columns first..end the value that is best while all others are held.
__device__ inline void improve_codes(
    const Member& me, const DescentBlock& block, const DescentRow& row, unsigned first, unsigned end, const Scale& scale
) {
    for (unsigned i = first; i < end; ++i) {
        const float* hessian = block.hessian + static_cast<size_t>(block.start + i) * block.size + block.start;
        float change = 0.0f;
        if (me.owns(i)) {
            float steepness = scale.scale * hessian[i];
            float code = round_within(row.codes[i] + row.gradient[i] / steepness, scale.low, scale.high);
            change = code - row.codes[i];
            row.codes[i] = code;
        }
        change = from_owner(change, i);
        if (change != 0.0f) {
            float error = scale.scale * change;
            for (unsigned j = me.lane; j < block.length; j += TEAM) {
                row.gradient[j] -= error * hessian[j];
            }
        }
    }
}

/// Gives the group of columns first..end the scale that is best for its codes, where half precision has a better one.
__device__ inline Scale improve_scale(
    const Member& me, const DescentBlock& block, const DescentRow& row, unsigned first, unsigned end, const Scale& scale,
    const Grid& grid
) {
    __syncwarp();
    const float* hessian = block.hessian + static_cast<size_t>(block.start) * block.size + block.start;
    for (unsigned j = me.lane; j < block.length; j += TEAM) {
        float sum = 0.0f;
        for (unsigned i = first; i < end; ++i) {
            sum += row.codes[i] * hessian[static_cast<size_t>(i) * block.size + j];
        }
        row.curvature[j] = sum;
    }
    float2 sums = sum_columns(me, row.terms, first, end, [&](unsigned column) {
        return make_float2(
            row.codes[column] * row.gradient[column], row.codes[column] * row.curvature[column]
        );
    });
    float slope = sums.x, bend = sums.y;
    float change = stored(scale.scale + slope / bend) - scale.scale;
    float gain = change * (slope + slope - change * bend);
    change = gain > 0.0f ? change : 0.0f;
    for (unsigned j = me.lane; j < block.length; j += TEAM) {
        row.gradient[j] -= change * row.curvature[j];
    }
    return Scale(scale.scale + change, -scale.low, grid);
}

/// Gives the group of columns first..end, number `group` of the block, the zero point that is best for its codes, which keep
/// their place on the grid.
__device__ inline Scale improve_zero(
    const Member& me, const DescentBlock& block, const DescentRow& row, unsigned group, unsigned first, unsigned end,
    const Scale& scale, const Grid& grid
) {
    float bend = block.totals[group], zero = -scale.low;
    float slope = sum_columns(me, row.terms, first, end, [&](unsigned column) {
                      return make_float2(row.gradient[column], 0.0f);
                  }).x;
    float lowest = static_cast<float>(grid.lowest_zero);
    float better = round_within(zero - slope / (scale.scale * bend), lowest, grid.max_code());
    float change = better - zero;
    float error = scale.scale * change;
    for (unsigned i = me.first(first); i < end; i += TEAM) {
        row.codes[i] -= change;
    }
    for (unsigned j = me.lane; j < block.length; j += TEAM) {
        row.gradient[j] += error * block.row_sums[group * block.length + j];
    }
    return Scale(scale.scale, better, grid);
}

/// Improves a block of columns. `stride` as in gptq_solve_block.
///
/// Launch: teams, rows / teams thread blocks; dynamic shared memory: 4 * (3 * stride + 136) bytes a row.
extern "C" __global__ void __launch_bounds__(128, 6)
    gptq_descend_block(DescentBlock block, unsigned stride, Grid grid, Improved out) {
    extern __shared__ float shared[];
    Member me;
    unsigned first_group = block.start / grid.group_size;
    unsigned last_group = (block.start + block.length - 1) / grid.group_size;
    block.select(me.problem(block.problem_rows), last_group - first_group + 1);
    unsigned teams = blockDim.x / TEAM;
    DescentRow row = {
        shared + me.team * stride, shared + (teams + me.team) * stride, shared + (2 * teams + me.team) * stride,
        shared + 3 * teams * stride + me.team * TERMS_STRIDE
    };
    size_t values = static_cast<size_t>(me.row) * block.size + block.start;
    size_t scales = static_cast<size_t>(me.row) * ((block.size + grid.group_size - 1) / grid.group_size);
    for (unsigned j = me.lane; j < block.length; j += TEAM) {
        row.codes[j] = out.codes[values + j];
        row.gradient[j] = block.product[static_cast<size_t>(me.row) * block.length + j];
    }
    for (int turn = 0; turn < TURNS; ++turn) {
        for (unsigned group = first_group; group <= last_group; ++group) {
            unsigned begin = group * grid.group_size;
            unsigned first = max(begin, block.start) - block.start;
            unsigned end = min(begin - block.start + grid.group_size, block.length);
            Scale scale(out.scales[scales + group], out.zeros[scales + group], grid);
            improve_codes(me, block, row, first, end, scale);
            if (block.refit) {
                scale = improve_scale(me, block, row, first, end, scale, grid);
                if (!grid.symmetric) {
                    scale = improve_zero(me, block, row, group - first_group, first, end, scale, grid);
                }
                __syncwarp();
                if (me.lane == 0) {
                    out.scales[scales + group] = scale.scale;
                    out.zeros[scales + group] = -scale.low;
                }
                __syncwarp();
            }
        }
    }
    for (unsigned j = me.lane; j < block.length; j += TEAM) {
        float scale = out.scales[scales + (block.start + j) / grid.group_size];
        out.codes[values + j] = row.codes[j];
        out.errors[values + j] = block.weights[values + j] - scale * row.codes[j];
    }
}
