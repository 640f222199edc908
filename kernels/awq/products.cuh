// Products with the part of a Gram matrix that belongs to a group.
//
// A row's candidates are tried four at a time: the errors that each leaves lie side by side in shared memory, and each
// element of the Gram matrix that is read is used for all four. A thread computes four neighbouring columns, so that the
// eight threads of a row read 128 bytes at once.
#pragma once

#include "../rows/team.cuh"

/// Candidates that are tried together.
constexpr unsigned BATCH = 4;

/// Columns of a product that a team computes at a time.
constexpr unsigned PASS = 4 * TEAM;

/// Floats of a row's terms: one sum for each candidate. Rows are 8 banks apart.
constexpr unsigned BATCH_TERMS = BATCH * PASS + 8;

/// Products that are summed before they are added to the others, as in src/matmul.rs.
constexpr unsigned CHUNK = 512;

/// The part of the Gram matrix that belongs to a group: [length, stride] float32, zeros beyond `length` columns.
struct Gram {
    const float* values;
    unsigned length, stride;
};

/// What a thread has of the products of a pass: of each of its columns and each candidate.
struct Products {
    float of[4][BATCH];
};

/// values * gram for four columns from `column` on; `values` is [length] in shared memory, of four candidates each.
__device__ inline Products multiply(const Gram& gram, const float4* values, unsigned column) {
    Products all = {}, sums;
    for (unsigned start = 0; start < gram.length; start += CHUNK) {
        sums = {};
        for (unsigned t = start; t < min(start + CHUNK, gram.length); ++t) {
            float4 g = *reinterpret_cast<const float4*>(gram.values + t * gram.stride + column);
            float4 v = values[t];
            float left[4] = {g.x, g.y, g.z, g.w}, right[BATCH] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (unsigned i = 0; i < 4; ++i) {
#pragma unroll
                for (unsigned c = 0; c < BATCH; ++c) {
                    sums.of[i][c] = fmaf(left[i], right[c], sums.of[i][c]);
                }
            }
        }
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) {
#pragma unroll
            for (unsigned c = 0; c < BATCH; ++c) {
                all.of[i][c] = start == 0 ? sums.of[i][c] : all.of[i][c] + sums.of[i][c];
            }
        }
    }
    return all;
}

__device__ inline float of_candidate(const float4& values, unsigned c) {
    return c == 0 ? values.x : c == 1 ? values.y : c == 2 ? values.z : values.w;
}

/// The sum over columns, in their order, of values * (values * gram + pull + pull), for four candidates; the first four
/// threads of the team have one each. Without `pull`, of values * (values * gram). `values` are complete and visible to all.
__device__ inline float quadratic_forms(
    const Member& me, const Gram& gram, const float4* values, const float* pull, float* terms
) {
    float sum = 0.0f;
    for (unsigned start = 0; start < gram.length; start += PASS) {
        unsigned column = start + 4 * me.lane;
        if (column < gram.length) {
            Products products = multiply(gram, values, column);
#pragma unroll
            for (unsigned i = 0; i < 4; ++i) {
                if (column + i < gram.length) {
                    float4 value = values[column + i];
#pragma unroll
                    for (unsigned c = 0; c < BATCH; ++c) {
                        float slope = products.of[i][c];
                        if (pull) {
                            slope = slope + pull[column + i] + pull[column + i];
                        }
                        terms[c * PASS + 4 * me.lane + i] = of_candidate(value, c) * slope;
                    }
                }
            }
        }
        __syncwarp();
        if (me.lane < BATCH) {
            for (unsigned i = 0; i < min(PASS, gram.length - start); ++i) {
                sum += terms[me.lane * PASS + i];
            }
        }
        __syncwarp();
    }
    return sum;
}
