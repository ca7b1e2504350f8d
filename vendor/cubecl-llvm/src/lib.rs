//! Everything that `cubecl-cuda` names of its LLVM back end, and nothing behind it.
//!
//! `cubecl-cuda` depends on that back end even where its feature `cpp` chooses the other one, CUDA
//! C++ compiled by NVRTC; the published crate downloads an LLVM of some hundred megabytes in its build
//! script. Switchyard uses the other one alone, which also leaves more of a device in reach: `mma`,
//! `ldmatrix`, `cp.async` and inline assembly. A call into this crate's compiler is an error that
//! says so.
//!
//! A new version of `cubecl-cuda` may name more: then the compiler says what is missing here.

use core::ffi::c_char;

use cubecl_core::ir::nvidia::SmArch;
use cubecl_core::prelude::KernelDefinition;
use cubecl_environment::backtrace::BackTrace;
use cubecl_runtime::compiler::CompilationError;
use cubecl_runtime::kernel::BufferIOAttr;

use crate::nvptx::ptx_version::PtxVersion;

/// What code is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LlvmTarget {
    /// NVIDIA's virtual machine, PTX.
    Nvptx,
}

/// A compiler that compiles nothing.
#[derive(Clone, Debug)]
pub struct PlironCompiler {
    /// What for.
    pub target: LlvmTarget,
}

/// What the compiler is told of a device.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// The architecture of another maker's device.
    pub arch: Option<()>,
    /// The architecture of a device of NVIDIA's.
    pub sm_arch: Option<SmArch>,
    /// The newest PTX that the driver loads.
    pub ptx_version: Option<PtxVersion>,
    /// Whether launch parameters are constants of the grid.
    pub grid_constants: bool,
}

/// A compiled kernel for NVIDIA's devices.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// Its PTX.
    pub ptx: Vec<c_char>,
    /// Its text before that.
    pub ir: String,
    /// Bytes of shared memory.
    pub shared_memory_size: usize,
    /// Which buffers it reads and writes.
    pub io: Vec<BufferIOAttr>,
}

/// A compiled kernel.
#[derive(Clone, Debug)]
pub enum PlironArtifact {
    /// For NVIDIA's devices.
    NvptxCode(NvptxModule),
}

impl PlironCompiler {
    /// Compiles nothing.
    ///
    /// # Errors
    /// Always.
    pub fn compile(
        &mut self,
        _kernel: KernelDefinition,
        _options: &PlironOptions,
    ) -> Result<PlironArtifact, CompilationError> {
        Err(CompilationError::Generic {
            reason: "this program was built without LLVM: its CUDA kernels are compiled from CUDA C++ by NVRTC, which the \
                     feature `cpp` of `cubecl-cuda` chooses"
                .to_string(),
            backtrace: BackTrace::capture(),
        })
    }

    /// Ending of the name of a file with such a kernel.
    pub fn extension(&self) -> &'static str {
        "ll"
    }

    /// Name of the language of such a kernel.
    pub fn lang_tag(&self) -> &'static str {
        "llvm"
    }
}

/// What is NVIDIA's.
pub mod nvptx {
    /// Versions of PTX.
    pub mod ptx_version {
        use core::fmt;

        /// A version of PTX. There is none: NVRTC chooses.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum PtxVersion {}

        impl PtxVersion {
            /// The newest that a driver loads, as far as this crate would write it: none.
            pub fn for_driver(_driver_version: i32) -> Option<Self> {
                None
            }
        }

        impl fmt::Display for PtxVersion {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {}
            }
        }
    }
}

/// What all targets have in common.
pub mod shared {
    /// Which features of a device are left over when LLVM compiles for it.
    pub mod lowered_features {
        use cubecl_core::ir::DeviceProperties;

        /// Whose device.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum GpuTarget {
            /// NVIDIA's.
            Nvptx,
        }

        /// Takes nothing away: NVRTC compiles all that the device has.
        pub fn restrict_features(_properties: &mut DeviceProperties, _target: GpuTarget) {}
    }
}
