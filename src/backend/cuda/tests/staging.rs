//! Copies in pieces.

use super::gpu;
use crate::backend::cuda::staging::Staging;
use crate::noise::noise;

#[test]
fn pieces_and_what_is_left_come_back_as_they_were() {
    let Some((gpu, _one)) = gpu() else { return };
    let mut staging = Staging::new(gpu.stream.context(), 100);
    for n in [1, 99, 100, 101, 200, 350, 1000] {
        let values = noise(n as u32, n);
        let mut there = gpu.stream.alloc_zeros::<f32>(n).unwrap();
        staging.upload(&gpu.stream, &values, &mut there).unwrap();
        assert!(staging.fetch(&gpu.stream, &there).unwrap() == values, "{n} values");
    }
}
