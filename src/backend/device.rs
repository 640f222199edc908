//! Which device: its name on the command line, and what is behind it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{Backend, Cpu};
use crate::error::{Error, Kind, Result};
use crate::format::gguf::blocks::Simd;

/// The name of a device: `cpu`, `cuda:N`, several of these as in `cuda:0,cuda:1`, or `auto`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceName {
    /// The processor.
    Cpu,
    /// The GPUs of these numbers, at least one and each once.
    Cuda(Vec<usize>),
    /// The first GPU if there is one, else the processor.
    Auto,
}

impl FromStr for DeviceName {
    type Err = Error;

    fn from_str(name: &str) -> Result<DeviceName> {
        match name {
            "cpu" => return Ok(DeviceName::Cpu),
            "auto" => return Ok(DeviceName::Auto),
            "cuda" => return Ok(DeviceName::Cuda(vec![0])),
            _ => {}
        }
        let number = |name: &str| name.strip_prefix("cuda:").and_then(|n| n.parse().ok());
        let numbers: Option<Vec<usize>> = name.split(',').map(number).collect();
        let Some(numbers) = numbers else {
            return Err(Error::new(Kind::Usage, format!("--device '{name}' is none of cpu, auto, cuda:N"))
                .hint("GPUs are counted from 0: cuda:0 is the first, cuda:0,cuda:1 the first two."));
        };
        if (1..numbers.len()).any(|i| numbers[..i].contains(&numbers[i])) {
            return Err(Error::new(Kind::Usage, format!("--device '{name}' names a GPU twice")));
        }
        Ok(DeviceName::Cuda(numbers))
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceName::Cpu => f.write_str("cpu"),
            DeviceName::Cuda(numbers) => {
                let names: Vec<String> = numbers.iter().map(|n| format!("cuda:{n}")).collect();
                f.write_str(&names.join(","))
            }
            DeviceName::Auto => f.write_str("auto"),
        }
    }
}

impl DeviceName {
    /// Refuses a GPU for what only the processor does.
    ///
    /// # Errors
    /// `Unsupported` if a GPU was asked for by its number.
    pub fn cpu_only(&self, what: &str) -> Result<()> {
        match self {
            DeviceName::Cpu | DeviceName::Auto => Ok(()),
            DeviceName::Cuda(_) if !cfg!(feature = "cuda") => Err(without_cuda(self)),
            DeviceName::Cuda(_) => {
                Err(Error::new(Kind::Unsupported, format!("--device {self}: {what} runs on the CPU only"))
                    .hint("Pass --device cpu or leave it out. A GPU is used to quantize."))
            }
        }
    }
}

/// Opens a device. `simd` is for the processor.
///
/// # Errors
/// `Unsupported` if this build has no CUDA, `Resources` if there is no driver or no GPU, `Usage` if there are fewer GPUs.
pub fn open(name: &DeviceName, simd: Simd) -> Result<Arc<dyn Backend>> {
    match name {
        DeviceName::Cpu => Ok(Arc::new(Cpu { simd })),
        #[cfg(feature = "cuda")]
        DeviceName::Cuda(numbers) => Ok(match numbers[..] {
            [number] => Arc::new(super::Cuda::open(number)?),
            _ => Arc::new(super::Gpus::open(numbers)?),
        }),
        #[cfg(not(feature = "cuda"))]
        DeviceName::Cuda(_) => Err(without_cuda(name)),
        #[cfg(feature = "cuda")]
        DeviceName::Auto if super::Cuda::is_there() => open(&DeviceName::Cuda(vec![0]), simd),
        DeviceName::Auto => open(&DeviceName::Cpu, simd),
    }
}

fn without_cuda(name: &DeviceName) -> Error {
    Error::new(Kind::Unsupported, format!("--device {name}: this build has no CUDA backend")).hint(
        "Install one with `cargo install --path . --features cuda`, which needs nvcc, or pass --device cpu.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices() {
        for (text, name) in [
            ("cpu", DeviceName::Cpu),
            ("auto", DeviceName::Auto),
            ("cuda:3", DeviceName::Cuda(vec![3])),
            ("cuda:1,cuda:0", DeviceName::Cuda(vec![1, 0])),
        ] {
            assert_eq!(text.parse::<DeviceName>().unwrap(), name);
            assert_eq!(name.to_string(), text);
        }
        assert_eq!("cuda".parse::<DeviceName>().unwrap(), DeviceName::Cuda(vec![0]));
        for text in [
            "",
            "gpu",
            "cuda:",
            "cuda:x",
            "cuda:-1",
            "CUDA:0",
            "cuda:0,",
            "cuda:0,1",
            "cuda:0,cpu",
            "cuda:2,cuda:2",
        ] {
            assert_eq!(text.parse::<DeviceName>().unwrap_err().kind(), Kind::Usage, "{text}");
        }
    }

    #[test]
    fn the_processor_is_always_there() {
        assert_eq!(open(&DeviceName::Cpu, Simd::Portable).unwrap().name(), "cpu");
    }
}
