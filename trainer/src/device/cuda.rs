//! What CUDA needs at run time beside a device, looked for before burn asks for it: there each of
//! these would be a panic on a thread of its own.

use std::fmt;
use std::path::PathBuf;

/// Headers that kernels include.
#[cfg(feature = "cuda")]
const HEADERS: [&str; 2] = ["cuda_fp16.h", "cuda_bf16.h"];

/// A version of CUDA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CudaVersion {
    /// Before the point.
    pub major: i32,
    /// Behind it.
    pub minor: i32,
}

impl fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Why no CUDA device can be used, however many there are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CudaProblem {
    /// The loader does not find `libcuda`.
    #[error("no NVIDIA driver is found (`libcuda.so.1`): install the driver of the GPU")]
    NoDriver,
    /// It is there, and does not start.
    #[error("the NVIDIA driver does not start ({0}): see whether `nvidia-smi` shows a GPU")]
    DriverFailed(String),
    /// The loader does not find `libnvrtc`.
    #[error(
        "the compiler of CUDA kernels, NVRTC, is not found (`libnvrtc.so.13` or `.12`): install the CUDA toolkit, or \
         `pip install nvidia-cuda-nvrtc`, and name its folder in LD_LIBRARY_PATH"
    )]
    NoCompiler,
    /// The driver would refuse what the compiler makes.
    #[error(
        "NVRTC {compiler} makes code that this driver, of CUDA {driver}, does not load: install NVRTC {driver} or an \
         older one, or a newer driver"
    )]
    CompilerTooNew {
        /// Version of NVRTC.
        compiler: CudaVersion,
        /// Newest version that the driver knows.
        driver: CudaVersion,
    },
    /// The compiler would not find what kernels include.
    #[error(
        "the headers of CUDA (`cuda_fp16.h` and `cuda_bf16.h`) are not in {}: install the CUDA toolkit, or `pip install \
         nvidia-cuda-runtime`, and set CUDA_PATH to the folder that has them in `include`",
        place(.0.as_ref())
    )]
    NoHeaders(Option<PathBuf>),
}

fn place(include: Option<&PathBuf>) -> String {
    include.map_or_else(
        || "/usr/local/cuda/include, and CUDA_PATH is not set".to_string(),
        |include| format!("`{}`", include.display()),
    )
}

/// What of CUDA is on this machine.
#[cfg(any(feature = "cuda", test))]
#[derive(Debug, Clone)]
pub(super) struct Installation {
    /// The newest version that the driver knows; `None` without a driver, an error if it does not start.
    pub(super) driver: Option<Result<CudaVersion, String>>,
    /// The version of NVRTC, if it is there.
    pub(super) compiler: Option<CudaVersion>,
    /// Where headers are looked for, and whether all are there.
    pub(super) include: Option<(PathBuf, bool)>,
}

#[cfg(any(feature = "cuda", test))]
impl Installation {
    /// Ok if a device of it can be used.
    pub(super) fn check(&self) -> Result<(), CudaProblem> {
        let driver = match &self.driver {
            None => return Err(CudaProblem::NoDriver),
            Some(Err(error)) => return Err(CudaProblem::DriverFailed(error.clone())),
            Some(Ok(version)) => *version,
        };
        let compiler = self.compiler.ok_or(CudaProblem::NoCompiler)?;
        // The driver compiles PTX on, and refuses that of a later version of CUDA, be it by its minor
        // number alone.
        if compiler > driver {
            return Err(CudaProblem::CompilerTooNew { compiler, driver });
        }
        match &self.include {
            Some((_, true)) => Ok(()),
            Some((include, false)) => Err(CudaProblem::NoHeaders(Some(include.clone()))),
            None => Err(CudaProblem::NoHeaders(None)),
        }
    }
}

#[cfg(feature = "cuda")]
impl Installation {
    /// That of this machine.
    pub(super) fn find() -> Self {
        let headers_in = |include: PathBuf| {
            let has_all = HEADERS.iter().all(|header| include.join(header).is_file());
            (include, has_all)
        };
        Self {
            driver: driver_version(),
            compiler: compiler_version(),
            include: cubecl_cuda::install::cuda_path().map(|path| headers_in(path.join("include"))),
        }
    }
}

#[cfg(feature = "cuda")]
#[expect(unsafe_code, reason = "C functions without safe wrappers")]
fn driver_version() -> Option<Result<CudaVersion, String>> {
    use cudarc::driver::{result, sys};

    // SAFETY: loads a library, and runs nothing but its initialisers.
    if !unsafe { sys::is_culib_present() } {
        return None;
    }
    let version = || {
        result::init()?;
        let mut version = 0;
        // SAFETY: writes the integer that it is given.
        unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
        // As the driver writes it: 12080 is 12.8.
        Ok(CudaVersion { major: version / 1000, minor: version % 1000 / 10 })
    };
    Some(version().map_err(|error: result::DriverError| format!("{:?}", error.0)))
}

#[cfg(feature = "cuda")]
#[expect(unsafe_code, reason = "C functions without safe wrappers")]
fn compiler_version() -> Option<CudaVersion> {
    use cudarc::nvrtc::sys;

    // SAFETY: loads a library, and runs nothing but its initialisers.
    if !unsafe { sys::is_culib_present() } {
        return None;
    }
    let mut version = CudaVersion { major: 0, minor: 0 };
    // SAFETY: writes the two integers that it is given.
    let status = unsafe { sys::nvrtcVersion(&mut version.major, &mut version.minor) };
    (status == sys::nvrtcResult::NVRTC_SUCCESS).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CUDA_12_8: CudaVersion = CudaVersion { major: 12, minor: 8 };
    const CUDA_13_0: CudaVersion = CudaVersion { major: 13, minor: 0 };

    fn complete() -> Installation {
        Installation {
            driver: Some(Ok(CUDA_12_8)),
            compiler: Some(CUDA_12_8),
            include: Some(("/cuda/include".into(), true)),
        }
    }

    #[test]
    fn each_part_that_is_missing_has_an_error_of_its_own() {
        complete().check().unwrap();
        let newer = Installation { driver: Some(Ok(CUDA_13_0)), ..complete() };
        newer.check().unwrap();
        let cases = [
            (Installation { driver: None, ..complete() }, CudaProblem::NoDriver),
            (
                Installation { driver: Some(Err("NO_DEVICE".into())), ..complete() },
                CudaProblem::DriverFailed("NO_DEVICE".into()),
            ),
            (Installation { compiler: None, ..complete() }, CudaProblem::NoCompiler),
            (
                Installation { compiler: Some(CUDA_13_0), ..complete() },
                CudaProblem::CompilerTooNew { compiler: CUDA_13_0, driver: CUDA_12_8 },
            ),
            (Installation { include: None, ..complete() }, CudaProblem::NoHeaders(None)),
            (
                Installation { include: Some(("/cuda/include".into(), false)), ..complete() },
                CudaProblem::NoHeaders(Some("/cuda/include".into())),
            ),
        ];
        for (installation, problem) in cases {
            assert_eq!(installation.check(), Err(problem));
        }
    }

    #[test]
    fn versions_are_told_as_cuda_numbers_them() {
        let problem = CudaProblem::CompilerTooNew { compiler: CUDA_13_0, driver: CUDA_12_8 };
        assert!(problem.to_string().starts_with("NVRTC 13.0 makes code that this driver, of CUDA 12.8,"));
    }
}
