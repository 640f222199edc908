// The solver of a block of columns, each error made good by the columns that follow (src/quant/gptq/solve.rs).
#pragma once

#include "../rows/scale_search.cuh"

/// What a block of steps is made of.
struct SolveBlock {
    /// [rows, size].
    const float* weights;
    /// [rows, length]: the errors of earlier steps, each times its factor.
    const float* product;
    /// [problems, size, size], upper triangular in the order of the steps.
    const float* factor;
    /// [problems, size]: the importance of each step.
    const float* conditional;
    /// [problems, size]: the column of each step.
    const unsigned* columns;
    /// [problems, group_count, 3]: number, first step and end of each group; none if all scales are chosen.
    const unsigned* groups;
    unsigned group_count, problem_rows, size, start, length;

    /// Leaves the matrices of one problem. Weights and product are those of all rows.
    __device__ void select(size_t problem) {
        factor += problem * size * size;
        conditional += problem * size;
        columns += problem * size;
        groups += problem * group_count * 3;
    }
};

/// Where the results go: codes [rows, size] in the order of columns, errors [rows, size] in the order of steps, scales and
/// zero points [rows, groups].
struct Solved {
    float *codes, *errors, *scales, *zeros;
};

/// Values of a row, one per step of the block.
struct SolveRow {
    float *weights, *pull, *updated, *terms;
};

/// Quantizes step `i` of the block, notes its error and passes it on.
__device__ inline void
solve_step(const Member& me, const SolveBlock& block, const Solved& out, const SolveRow& row, unsigned i, const Scale& scale) {
    const float* factor = block.factor + static_cast<size_t>(block.start + i) * block.size + block.start;
    float error = 0.0f;
    if (me.owns(i)) {
        float code = scale.code(row.weights[i] + row.pull[i] / factor[i]);
        error = row.weights[i] - scale.scale * code;
        size_t first = static_cast<size_t>(me.row) * block.size;
        out.codes[first + block.columns[block.start + i]] = code;
        out.errors[first + block.start + i] = error;
    }
    error = from_owner(error, i);
    for (unsigned j = me.first(i + 1); j < block.length; j += TEAM) {
        row.pull[j] += error * factor[j];
    }
}

/// Chooses the scale of the group at steps first..end: the best for what its weights would be were they not rounded.
__device__ inline Found solve_scale(
    const Member& me, const SolveBlock& block, const SolveRow& row, unsigned first, unsigned end, const Grid& grid
) {
    for (unsigned j = me.first(first); j < end; j += TEAM) {
        row.updated[j] = row.pull[j];
    }
    for (unsigned i = first; i < end; ++i) {
        const float* factor = block.factor + static_cast<size_t>(block.start + i) * block.size + block.start;
        float shift = 0.0f;
        if (me.owns(i)) {
            shift = row.updated[i] / factor[i];
            row.updated[i] = row.weights[i] + shift;
        }
        shift = from_owner(shift, i);
        for (unsigned j = me.first(i + 1); j < end; j += TEAM) {
            row.updated[j] -= shift * factor[j];
        }
    }
    __syncwarp();
    const float* importance = block.conditional + block.start + first;
    return search_scale(me, row.updated + first, importance, end - first, grid, row.terms);
}

/// Quantizes the steps of a block. `stride` is the floats of a row's array: at least `length`, and 8 more than a multiple of
/// 32, so that the teams of a warp use all banks.
///
/// Launch: teams, rows / teams thread blocks; dynamic shared memory: 4 * (3 * stride + 136) bytes a row.
extern "C" __global__ void __launch_bounds__(128, 6)
    gptq_solve_block(SolveBlock block, unsigned stride, Grid grid, Solved out) {
    extern __shared__ float shared[];
    Member me;
    block.select(me.problem(block.problem_rows));
    unsigned teams = blockDim.x / TEAM;
    SolveRow row = {
        shared + me.team * stride, shared + (teams + me.team) * stride, shared + (2 * teams + me.team) * stride,
        shared + 3 * teams * stride + me.team * TERMS_STRIDE
    };
    for (unsigned i = me.lane; i < block.length; i += TEAM) {
        row.weights[i] = block.weights[static_cast<size_t>(me.row) * block.size + block.columns[block.start + i]];
        row.pull[i] = block.product[static_cast<size_t>(me.row) * block.length + i];
    }
    size_t scales = static_cast<size_t>(me.row) * ((block.size + grid.group_size - 1) / grid.group_size);
    for (unsigned g = 0; g < block.group_count; ++g) {
        unsigned group = block.groups[3 * g];
        unsigned first = block.groups[3 * g + 1] - block.start, end = block.groups[3 * g + 2] - block.start;
        Found found = solve_scale(me, block, row, first, end, grid);
        if (me.lane == 0) {
            out.scales[scales + group] = found.scale;
            out.zeros[scales + group] = found.zero;
        }
        Scale scale(found.scale, found.zero, grid);
        for (unsigned i = first; i < end; ++i) {
            solve_step(me, block, out, row, i, scale);
        }
    }
    if (block.group_count == 0) {
        for (unsigned i = 0; i < block.length; ++i) {
            size_t at = scales + block.columns[block.start + i] / grid.group_size;
            solve_step(me, block, out, row, i, Scale(out.scales[at], out.zeros[at], grid));
        }
    }
}
