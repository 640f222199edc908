//! Lanes of x86-64: AVX-512 and AVX2.
//!
//! Safety of every block below: values of these types are made and used only by kernels that `Simd::run` has entered,
//! and it enters them in a function compiled for the instruction set, on a machine found to have it. Where memory is
//! touched, a slice of the right length was taken first.

use std::arch::x86_64::*;
use std::ops::{Add, Div, Mul, Sub};

use super::lanes::{Floats, Lanes, MAX_LANES};

/// Sixteen floats in an AVX-512 register.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct F32x16(__m512);

/// Eight floats in an AVX register.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct F32x8(__m256);

macro_rules! operators {
    ($type:ident: $($trait:ident $method:ident $intrinsic:ident),*) => {$(
        impl $trait for $type {
            type Output = $type;
            #[inline(always)]
            fn $method(self, other: $type) -> $type {
                // SAFETY: the instruction set is there (module docs).
                $type(unsafe { $intrinsic(self.0, other.0) })
            }
        }
    )*};
}
operators!(F32x16: Add add _mm512_add_ps, Sub sub _mm512_sub_ps, Mul mul _mm512_mul_ps, Div div _mm512_div_ps);
operators!(F32x8: Add add _mm256_add_ps, Sub sub _mm256_sub_ps, Mul mul _mm256_mul_ps, Div div _mm256_div_ps);

/// Methods whose bodies are intrinsics on values alone.
macro_rules! intrinsics {
    ($(fn $name:ident($($arg:ident: $argty:ty),*) -> $out:ty { $e:expr })*) => {$(
        #[inline(always)]
        fn $name($($arg: $argty),*) -> $out {
            // SAFETY: the instruction set is there (module docs).
            unsafe { $e }
        }
    )*};
}

impl F32x16 {
    /// The 16 x 16 matrix of these rows, transposed.
    #[inline(always)]
    fn transposed(r: [__m512; 16]) -> [F32x16; 16] {
        // SAFETY: the instruction set is there (module docs); values alone.
        unsafe {
            let mut t = r;
            for i in 0..8 {
                t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            // Quarter q of u[4 * i + k] is column 4 * q + k of the rows 4 * i..4 * i + 4.
            let mut u = t;
            for i in 0..4 {
                let (a, b) = (_mm512_castps_pd(t[4 * i]), _mm512_castps_pd(t[4 * i + 1]));
                let (c, d) = (_mm512_castps_pd(t[4 * i + 2]), _mm512_castps_pd(t[4 * i + 3]));
                u[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
                u[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
                u[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
                u[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
            }
            let mut out = [F32x16(r[0]); 16];
            for k in 0..4 {
                let even_low = _mm512_shuffle_f32x4::<0x88>(u[k], u[4 + k]);
                let even_high = _mm512_shuffle_f32x4::<0x88>(u[8 + k], u[12 + k]);
                let odd_low = _mm512_shuffle_f32x4::<0xdd>(u[k], u[4 + k]);
                let odd_high = _mm512_shuffle_f32x4::<0xdd>(u[8 + k], u[12 + k]);
                out[k] = F32x16(_mm512_shuffle_f32x4::<0x88>(even_low, even_high));
                out[8 + k] = F32x16(_mm512_shuffle_f32x4::<0xdd>(even_low, even_high));
                out[4 + k] = F32x16(_mm512_shuffle_f32x4::<0x88>(odd_low, odd_high));
                out[12 + k] = F32x16(_mm512_shuffle_f32x4::<0xdd>(odd_low, odd_high));
            }
            out
        }
    }
}

impl Floats for F32x16 {
    type Int = __m512i;
    type Mask = __mmask16;

    intrinsics! {
        fn splat(v: f32) -> F32x16 { F32x16(_mm512_set1_ps(v)) }
        fn sqrt(self: F32x16) -> F32x16 { F32x16(_mm512_sqrt_ps(self.0)) }
        fn abs(self: F32x16) -> F32x16 { F32x16(_mm512_abs_ps(self.0)) }
        fn neg(self: F32x16) -> F32x16 { F32x16(_mm512_xor_ps(self.0, _mm512_set1_ps(-0.0))) }
        fn max(self: F32x16, other: F32x16) -> F32x16 { F32x16(_mm512_max_ps(self.0, other.0)) }
        fn min(self: F32x16, other: F32x16) -> F32x16 { F32x16(_mm512_min_ps(self.0, other.0)) }
        fn gt(self: F32x16, other: F32x16) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, other.0) }
        fn ge(self: F32x16, other: F32x16) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_GE_OQ>(self.0, other.0) }
        fn lt(self: F32x16, other: F32x16) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, other.0) }
        fn ne(self: F32x16, other: F32x16) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(self.0, other.0) }
        fn select(mask: __mmask16, yes: F32x16, no: F32x16) -> F32x16 {
            F32x16(_mm512_mask_blend_ps(mask, no.0, yes.0))
        }
        fn int(v: i32) -> __m512i { _mm512_set1_epi32(v) }
        fn bits(self: F32x16) -> __m512i { _mm512_castps_si512(self.0) }
        fn int_and(a: __m512i, b: __m512i) -> __m512i { _mm512_and_si512(a, b) }
        fn int_sub(a: __m512i, b: __m512i) -> __m512i { _mm512_sub_epi32(a, b) }
        fn int_min(a: __m512i, b: __m512i) -> __m512i { _mm512_min_epi32(a, b) }
        fn int_max(a: __m512i, b: __m512i) -> __m512i { _mm512_max_epi32(a, b) }
        fn from_int(v: __m512i) -> F32x16 { F32x16(_mm512_cvtepi32_ps(v)) }
        fn trunc(self: F32x16) -> __m512i { _mm512_cvttps_epi32(self.0) }
    }

    #[inline(always)]
    fn and(a: __mmask16, b: __mmask16) -> __mmask16 {
        a & b
    }

    #[inline(always)]
    fn or(a: __mmask16, b: __mmask16) -> __mmask16 {
        a | b
    }

    #[inline(always)]
    fn any(mask: __mmask16) -> bool {
        mask != 0
    }
}

impl Lanes for F32x16 {
    const N: usize = 16;

    #[inline(always)]
    fn load(src: &[f32]) -> F32x16 {
        let src = &src[..16];
        // SAFETY: the instruction set is there (module docs), and so are 16 floats.
        F32x16(unsafe { _mm512_loadu_ps(src.as_ptr()) })
    }

    #[inline(always)]
    fn store(self, dst: &mut [f32]) {
        let dst = &mut dst[..16];
        // SAFETY: the instruction set is there (module docs), and so are 16 floats.
        unsafe { _mm512_storeu_ps(dst.as_mut_ptr(), self.0) }
    }

    #[inline(always)]
    fn store_u8(v: __m512i, dst: &mut [u8]) {
        let dst = &mut dst[..16];
        // SAFETY: the instruction set is there (module docs), and so are 16 bytes.
        unsafe { _mm_storeu_si128(dst.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(v)) }
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        // SAFETY: the instruction set is there (module docs); values alone.
        unsafe { _mm512_reduce_max_ps(self.0) }
    }

    #[inline(always)]
    fn smallest(self) -> f32 {
        // SAFETY: the instruction set is there (module docs); values alone.
        unsafe { _mm512_reduce_min_ps(self.0) }
    }

    #[inline(always)]
    fn lookup(self, table: &[f32; 32]) -> F32x16 {
        let (low, high) = (F32x16::load(&table[..16]), F32x16::load(&table[16..]));
        // SAFETY: the instruction set is there (module docs); values alone.
        F32x16(unsafe { _mm512_permutex2var_ps(low.0, self.bits(), high.0) })
    }

    #[inline(always)]
    fn transpose(src: &[f32], starts: &[usize; MAX_LANES], dst: &mut [F32x16]) {
        for (c, out) in dst.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let mut rows = [F32x16::splat(0.0).0; 16];
            for (row, start) in rows.iter_mut().zip(starts) {
                *row = F32x16::load(&src[start + 16 * c..]).0;
            }
            *out = F32x16::transposed(rows);
        }
    }
}

impl F32x8 {
    /// The 8 x 8 matrix of these rows, transposed.
    #[inline(always)]
    fn transposed(r: [__m256; 8]) -> [F32x8; 8] {
        // SAFETY: the instruction set is there (module docs); values alone.
        unsafe {
            let mut t = r;
            for i in 0..4 {
                t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            // Half q of u[4 * i + k] is column 4 * q + k of the rows 4 * i..4 * i + 4.
            let mut u = t;
            for i in 0..2 {
                let (a, b) = (_mm256_castps_pd(t[4 * i]), _mm256_castps_pd(t[4 * i + 1]));
                let (c, d) = (_mm256_castps_pd(t[4 * i + 2]), _mm256_castps_pd(t[4 * i + 3]));
                u[4 * i] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
                u[4 * i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
                u[4 * i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
                u[4 * i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
            }
            let mut out = [F32x8(r[0]); 8];
            for k in 0..4 {
                out[k] = F32x8(_mm256_permute2f128_ps::<0x20>(u[k], u[4 + k]));
                out[4 + k] = F32x8(_mm256_permute2f128_ps::<0x31>(u[k], u[4 + k]));
            }
            out
        }
    }
}

impl Floats for F32x8 {
    type Int = __m256i;
    type Mask = __m256;

    intrinsics! {
        fn splat(v: f32) -> F32x8 { F32x8(_mm256_set1_ps(v)) }
        fn sqrt(self: F32x8) -> F32x8 { F32x8(_mm256_sqrt_ps(self.0)) }
        fn abs(self: F32x8) -> F32x8 { F32x8(_mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0)) }
        fn neg(self: F32x8) -> F32x8 { F32x8(_mm256_xor_ps(self.0, _mm256_set1_ps(-0.0))) }
        fn max(self: F32x8, other: F32x8) -> F32x8 { F32x8(_mm256_max_ps(self.0, other.0)) }
        fn min(self: F32x8, other: F32x8) -> F32x8 { F32x8(_mm256_min_ps(self.0, other.0)) }
        fn gt(self: F32x8, other: F32x8) -> __m256 { _mm256_cmp_ps::<_CMP_GT_OQ>(self.0, other.0) }
        fn ge(self: F32x8, other: F32x8) -> __m256 { _mm256_cmp_ps::<_CMP_GE_OQ>(self.0, other.0) }
        fn lt(self: F32x8, other: F32x8) -> __m256 { _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, other.0) }
        fn ne(self: F32x8, other: F32x8) -> __m256 { _mm256_cmp_ps::<_CMP_NEQ_UQ>(self.0, other.0) }
        fn and(a: __m256, b: __m256) -> __m256 { _mm256_and_ps(a, b) }
        fn or(a: __m256, b: __m256) -> __m256 { _mm256_or_ps(a, b) }
        fn any(mask: __m256) -> bool { _mm256_movemask_ps(mask) != 0 }
        fn select(mask: __m256, yes: F32x8, no: F32x8) -> F32x8 {
            F32x8(_mm256_blendv_ps(no.0, yes.0, mask))
        }
        fn int(v: i32) -> __m256i { _mm256_set1_epi32(v) }
        fn bits(self: F32x8) -> __m256i { _mm256_castps_si256(self.0) }
        fn int_and(a: __m256i, b: __m256i) -> __m256i { _mm256_and_si256(a, b) }
        fn int_sub(a: __m256i, b: __m256i) -> __m256i { _mm256_sub_epi32(a, b) }
        fn int_min(a: __m256i, b: __m256i) -> __m256i { _mm256_min_epi32(a, b) }
        fn int_max(a: __m256i, b: __m256i) -> __m256i { _mm256_max_epi32(a, b) }
        fn from_int(v: __m256i) -> F32x8 { F32x8(_mm256_cvtepi32_ps(v)) }
        fn trunc(self: F32x8) -> __m256i { _mm256_cvttps_epi32(self.0) }
    }
}

impl Lanes for F32x8 {
    const N: usize = 8;

    #[inline(always)]
    fn load(src: &[f32]) -> F32x8 {
        let src = &src[..8];
        // SAFETY: the instruction set is there (module docs), and so are 8 floats.
        F32x8(unsafe { _mm256_loadu_ps(src.as_ptr()) })
    }

    #[inline(always)]
    fn store(self, dst: &mut [f32]) {
        let dst = &mut dst[..8];
        // SAFETY: the instruction set is there (module docs), and so are 8 floats.
        unsafe { _mm256_storeu_ps(dst.as_mut_ptr(), self.0) }
    }

    #[inline(always)]
    fn store_u8(v: __m256i, dst: &mut [u8]) {
        // SAFETY: the instruction set is there (module docs); values alone.
        let (low, high) = unsafe {
            let low_bytes = _mm256_set1_epi32(0x0c08_0400);
            let v = _mm256_shuffle_epi8(v, low_bytes);
            (_mm256_extract_epi32::<0>(v), _mm256_extract_epi32::<4>(v))
        };
        dst[..4].copy_from_slice(&low.to_le_bytes());
        dst[4..8].copy_from_slice(&high.to_le_bytes());
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        // SAFETY: the instruction set is there (module docs); values alone.
        unsafe {
            let v = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        }
    }

    #[inline(always)]
    fn smallest(self) -> f32 {
        // SAFETY: the instruction set is there (module docs); values alone.
        unsafe {
            let v = _mm_min_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let v = _mm_min_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_min_ss(v, _mm_movehdup_ps(v)))
        }
    }

    #[inline(always)]
    fn lookup(self, table: &[f32; 32]) -> F32x8 {
        let index = F32x8::int_and(self.bits(), F32x8::int(31));
        // SAFETY: the instruction set is there (module docs), and all indices are below 32.
        F32x8(unsafe { _mm256_i32gather_ps::<4>(table.as_ptr(), index) })
    }

    #[inline(always)]
    fn transpose(src: &[f32], starts: &[usize; MAX_LANES], dst: &mut [F32x8]) {
        for (c, out) in dst.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let mut rows = [F32x8::splat(0.0).0; 8];
            for (row, start) in rows.iter_mut().zip(starts) {
                *row = F32x8::load(&src[start + 8 * c..]).0;
            }
            *out = F32x8::transposed(rows);
        }
    }
}
