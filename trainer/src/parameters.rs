//! A model's parameters as named, flat tensors, in the model's own order.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Gradients, Tensor, TensorData};

/// Something known about one parameter, under the parameter's path in the model.
#[derive(Debug, Clone)]
pub struct Named<T> {
    /// Path, such as `blocks.0.attention.query.weight_io`.
    pub path: String,
    /// The thing known.
    pub value: T,
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

/// Every parameter, without copying any.
pub fn parameter_tensors<M: Module>(model: &M) -> Vec<Named<ParameterTensor>> {
    struct Reader(Path, Vec<Named<ParameterTensor>>);
    impl ModuleVisitor for Reader {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _name: &str, container: &str) {
            self.0.exit(container);
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let tensor = param.val();
            let (shape, learns) = (tensor.dims().to_vec(), tensor.is_require_grad());
            let value = ParameterTensor { shape, values_n: tensor.inner().flatten(0, D - 1), learns };
            self.1.push(Named { path: self.0.join(), value });
        }
    }
    let mut reader = Reader(Path::default(), Vec::new());
    model.visit(&mut reader);
    reader.1
}

/// Every parameter's values and shape.
pub fn parameter_data<M: Module>(model: &M) -> Vec<Named<TensorData>> {
    let data = |Named { path, value }: Named<ParameterTensor>| {
        let (bytes, _, dtype) = value.values_n.into_data().into_parts();
        Named { path, value: TensorData::from_bytes(bytes, value.shape, dtype) }
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
                self.2.push(Named { path: self.0.join(), value: gradient.flatten(0, D - 1) });
            }
        }
    }
    let mut reader = Reader(Path::default(), gradients, Vec::new());
    model.visit(&mut reader);
    reader.2
}

/// The model with each parameter replaced by what `update` returns for its path, shape and flattened, detached
/// values. Parameters stay leaves that get gradients, or that get none.
pub fn update_parameters<M: Module>(
    model: M,
    update: impl FnMut(&str, &[usize], Tensor<1>) -> Tensor<1>,
) -> M {
    struct Mapper<F>(Path, F);
    impl<F: FnMut(&str, &[usize], Tensor<1>) -> Tensor<1>> ModuleMapper for Mapper<F> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _name: &str, container: &str) {
            self.0.exit(container);
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let path = self.0.join();
            param.map(|tensor| {
                let (shape, tracked, learns) =
                    (tensor.dims(), tensor.is_autodiff(), tensor.is_require_grad());
                let updated = (self.1)(&path, &shape, tensor.inner().flatten(0, D - 1)).reshape(shape);
                if tracked { Tensor::from_inner(updated).set_require_grad(learns) } else { updated }
            })
        }
    }
    model.map(&mut Mapper(Path::default(), update))
}

/// Where a visitor is in the module tree. Enum variants do not count: the field that holds the enum names it.
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

    fn join(&self) -> String {
        self.0.join(".")
    }
}

fn is_variant(container: &str) -> bool {
    container.starts_with("Enum:")
}
