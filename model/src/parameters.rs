//! A model's parameters as named, flat tensors, in the model's own order.
//!
//! The functions take a whole [`Transformer`](crate::Transformer) or a module with parts of one
//! under the same fields.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Gradients, Tensor, TensorData};

use crate::ParameterName;

/// A value of one parameter: its tensor, its gradient or what is known of it.
#[derive(Debug, Clone)]
pub struct Named<T> {
    /// Which parameter.
    pub name: ParameterName,
    /// The value.
    pub value: T,
}

/// What is known of a parameter without its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterShape {
    /// Shape in the model.
    pub shape: Vec<usize>,
    /// Whether it gets gradients, as far as the device tracks them.
    pub learns: bool,
}

/// A parameter where it lies: nothing is copied until its values are asked for.
#[derive(Debug, Clone)]
pub struct ParameterTensor {
    /// Shape in the model.
    pub shape: Vec<usize>,
    /// The values, flattened and detached.
    pub values_n: Tensor<1>,
    /// Whether it gets gradients, as far as the device tracks them.
    pub learns: bool,
}

/// What is read of a parameter.
trait Reading: Sized {
    fn of<const D: usize>(tensor: Tensor<D>) -> Self;
}

impl Reading for ParameterShape {
    fn of<const D: usize>(tensor: Tensor<D>) -> Self {
        Self { shape: tensor.dims().to_vec(), learns: tensor.is_require_grad() }
    }
}

impl Reading for ParameterTensor {
    fn of<const D: usize>(tensor: Tensor<D>) -> Self {
        let (shape, learns) = (tensor.dims().to_vec(), tensor.is_require_grad());
        Self { shape, values_n: tensor.inner().flatten(0, D - 1), learns }
    }
}

/// Every parameter, without copying any.
pub fn parameter_tensors<M: Module>(model: &M) -> Vec<Named<ParameterTensor>> {
    readings(model)
}

/// Every parameter's shape; those of a [`Transformer::outline`](crate::Transformer::outline) too.
pub fn parameter_shapes<M: Module>(model: &M) -> Vec<Named<ParameterShape>> {
    readings(model)
}

fn readings<M: Module, T: Reading>(model: &M) -> Vec<Named<T>> {
    struct Reader<T>(Path, Vec<Named<T>>);
    impl<T: Reading> ModuleVisitor for Reader<T> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _name: &str, container: &str) {
            self.0.exit(container);
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.1.push(Named { name: self.0.name(), value: T::of(param.val()) });
        }
    }
    let mut reader = Reader(Path::default(), Vec::new());
    model.visit(&mut reader);
    reader.1
}

/// Every parameter's values and shape.
pub fn parameter_data<M: Module>(model: &M) -> Vec<Named<TensorData>> {
    let data = |Named { name, value }: Named<ParameterTensor>| {
        let (bytes, _, dtype) = value.values_n.into_data().into_parts();
        Named { name, value: TensorData::from_bytes(bytes, value.shape, dtype) }
    };
    parameter_tensors(model).into_iter().map(data).collect()
}

/// Every parameter's gradient, flattened; parameters without one are left out.
pub fn parameter_gradients<M: Module>(model: &M, gradients: &Gradients) -> Vec<Named<Tensor<1>>> {
    struct Reader<'a>(Path, &'a Gradients, Vec<Named<Tensor<1>>>);
    impl ModuleVisitor for Reader<'_> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _name: &str, container: &str) {
            self.0.exit(container);
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = param.val().grad(self.1) {
                self.2.push(Named { name: self.0.name(), value: gradient.flatten(0, D - 1) });
            }
        }
    }
    let mut reader = Reader(Path::default(), gradients, Vec::new());
    model.visit(&mut reader);
    reader.2
}

/// The model with each parameter replaced by what `update` returns for its name, shape and
/// flattened, detached values. Parameters stay leaves that get gradients, or that get none.
pub fn update_parameters<M: Module>(
    model: M,
    update: impl FnMut(ParameterName, &[usize], Tensor<1>) -> Tensor<1>,
) -> M {
    struct Mapper<F>(Path, F);
    impl<F: FnMut(ParameterName, &[usize], Tensor<1>) -> Tensor<1>> ModuleMapper for Mapper<F> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _name: &str, container: &str) {
            self.0.exit(container);
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let name = self.0.name();
            param.map(|tensor| {
                let (shape, tracked, learns) =
                    (tensor.dims(), tensor.is_autodiff(), tensor.is_require_grad());
                let updated = (self.1)(name, &shape, tensor.inner().flatten(0, D - 1)).reshape(shape);
                if tracked { Tensor::from_inner(updated).set_require_grad(learns) } else { updated }
            })
        }
    }
    model.map(&mut Mapper(Path::default(), update))
}

/// The model in which the parameters that `is_frozen` names get no gradients any more.
pub fn freeze_parameters<M: Module>(model: M, is_frozen: impl Fn(ParameterName) -> bool) -> M {
    struct Mapper<F>(Path, F);
    impl<F: Fn(ParameterName) -> bool> ModuleMapper for Mapper<F> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _name: &str, container: &str) {
            self.0.exit(container);
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if (self.1)(self.0.name()) { param.set_require_grad(false) } else { param }
        }
    }
    model.map(&mut Mapper(Path::default(), is_frozen))
}

/// Where a visitor is in the module tree. Enum variants do not count: the field that holds the enum
/// names it.
#[derive(Debug, Default)]
struct Path(Vec<String>);

impl Path {
    fn enter(&mut self, name: &str, container: &str) {
        if !is_variant(container) {
            self.0.push(name.to_string());
        }
    }

    fn exit(&mut self, container: &str) {
        if !is_variant(container) {
            self.0.pop();
        }
    }

    /// The name of the parameter here.
    ///
    /// # Panics
    /// If it has none: a new parameter needs an entry in `names`.
    fn name(&self) -> ParameterName {
        let path = self.0.join(".");
        ParameterName::of_field_path(&path).unwrap_or_else(|| panic!("the parameter `{path}` has no name"))
    }
}

fn is_variant(container: &str) -> bool {
    container.starts_with("Enum:")
}
