//! What multiplies, where two machines have different bits.

pub use switchyard_kernels::Products;

/// The names of what multiplies, if both multiply bf16 and their results differ in bits. Between f32
/// and bf16 there is no need to say so: the configurations differ.
pub fn bits_differ(a: Products, b: Products) -> Option<[&'static str; 2]> {
    let both_round = ![a, b].contains(&Products::F32);
    (both_round && !a.has_bits_of(b)).then(|| [a, b].map(name))
}

fn name(products: Products) -> &'static str {
    match products {
        Products::F32 => "f32",
        Products::RoundedF32 => "rounded f32",
        Products::Avx512Bf16 => "AVX512-BF16",
        Products::Amx => "AMX",
    }
}
