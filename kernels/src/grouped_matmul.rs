//! Groups of rows, each times its own matrix: the matrix products of a mixture of experts.
//!
//! Shape letters: n rows, e groups (experts), d inner width, f outer width.

use std::ops::Range;
use std::sync::Arc;

use burn::backend::{
    Autodiff, Backend, Dispatch, Flex, TensorMetadata,
    autodiff::{
        NodeId,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    backend_extension,
    tensor::FloatTensor,
};
use burn::tensor::{Shape, Slice, Tensor};

/// Which rows belong to which group: group g owns rows `offsets[g]..offsets[g + 1]`. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    offsets: Arc<[usize]>,
}

impl Groups {
    /// Groups from their `num_groups + 1` row offsets.
    ///
    /// # Panics
    /// If `offsets` is empty, does not start at 0, or descends.
    pub fn new(offsets: impl Into<Arc<[usize]>>) -> Self {
        let offsets = offsets.into();
        assert!(offsets.first() == Some(&0), "row offsets must start at 0, got {offsets:?}");
        assert!(offsets.is_sorted(), "row offsets must not descend, got {offsets:?}");
        Self { offsets }
    }

    /// Number of groups, empty ones included.
    pub fn num_groups(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Rows of all groups together.
    pub fn num_rows(&self) -> usize {
        self.offsets[self.num_groups()]
    }

    /// Rows of one group.
    ///
    /// # Panics
    /// If `group` is not below [`Groups::num_groups`].
    pub fn rows(&self, group: usize) -> Range<usize> {
        self.offsets[group]..self.offsets[group + 1]
    }

    /// The groups that own rows, with their rows, in order.
    fn occupied(&self) -> impl Iterator<Item = (usize, Range<usize>)> {
        (0..self.num_groups()).map(|group| (group, self.rows(group))).filter(|(_, rows)| !rows.is_empty())
    }
}

/// Rows of group g times matrix g, for every group. Group by group this is the same 2-D matrix product as
/// `x.matmul(w)`, bit for bit, forward and backward; an empty group costs nothing and its gradient is zero.
///
/// # Shapes
/// - `x_nd`: `[num_rows, d]`, rows sorted by group; `w_edf`: `[num_groups, d, f]`; returns `[num_rows, f]`
///
/// # Panics
/// If the shapes do not fit each other or `groups`.
pub fn grouped_matmul(x_nd: Tensor<2>, w_edf: Tensor<3>, groups: &Groups) -> Tensor<2> {
    let ([n, d], [e, d_in, _]) = (x_nd.dims(), w_edf.dims());
    assert!(
        n == groups.num_rows() && e == groups.num_groups() && d == d_in,
        "rows {:?} and matrices {:?} do not fit {} rows in {} groups",
        x_nd.dims(),
        w_edf.dims(),
        groups.num_rows(),
        groups.num_groups(),
    );
    let y_nf = Dispatch::grouped_matmul(x_nd.into_dispatch(), w_edf.into_dispatch(), groups.clone());
    Tensor::from_dispatch(y_nf)
}

/// The operation and its gradients on one backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub(crate) trait GroupedMatmul: Backend {
    /// `x_nd` times `w_edf`, group by group: `[n, f]`.
    fn grouped_matmul(
        x_nd: FloatTensor<Self>,
        w_edf: FloatTensor<Self>,
        groups: Groups,
    ) -> FloatTensor<Self> {
        multiply_groups::<Self>(x_nd, w_edf, &groups, Orientation::AsStored)
    }

    /// Gradient of `x_nd`: `dy_nf` times the transposed matrices, group by group.
    fn grouped_matmul_input_gradient(
        dy_nf: FloatTensor<Self>,
        w_edf: FloatTensor<Self>,
        groups: Groups,
    ) -> FloatTensor<Self> {
        multiply_groups::<Self>(dy_nf, w_edf, &groups, Orientation::Transposed)
    }

    /// Gradient of `w_edf`: per group, the transposed rows of `x_nd` times those of `dy_nf`.
    fn grouped_matmul_weight_gradient(
        x_nd: FloatTensor<Self>,
        dy_nf: FloatTensor<Self>,
        groups: Groups,
    ) -> FloatTensor<Self> {
        let (d, f) = (x_nd.shape()[1], dy_nf.shape()[1]);
        let gradient_of = |group| {
            let rows = groups.rows(group);
            if rows.is_empty() {
                return Self::float_zeros(Shape::new([1, d, f]), &dy_nf.device(), dy_nf.dtype().into());
            }
            let x_td = take_rows::<Self>(&x_nd, rows.clone());
            let dw_df = Self::float_matmul(Self::float_transpose(x_td), take_rows::<Self>(&dy_nf, rows));
            Self::float_reshape(dw_df, Shape::new([1, d, f]))
        };
        // One concatenation at the end: writing each group into a zeroed stack would copy the whole stack per group.
        Self::float_cat((0..groups.num_groups()).map(gradient_of).collect(), 0)
    }
}

/// How a group's matrix enters the product.
#[derive(Clone, Copy)]
enum Orientation {
    AsStored,
    Transposed,
}

/// The default body of the forward product and of the input gradient.
fn multiply_groups<B: Backend>(
    x_nd: FloatTensor<B>,
    w_edf: FloatTensor<B>,
    groups: &Groups,
    orientation: Orientation,
) -> FloatTensor<B> {
    let (d, f) = (w_edf.shape()[1], w_edf.shape()[2]);
    let product_of = |(group, rows)| {
        let w_1df = B::float_slice(w_edf.clone(), &[Slice::from(group..group + 1)]);
        // Reshape before transposing: a transposed view would have to be copied first, and the copy would take
        // another path through the matrix product than `x.matmul(w)` takes.
        let w_df = B::float_reshape(w_1df, Shape::new([d, f]));
        let w = match orientation {
            Orientation::AsStored => w_df,
            Orientation::Transposed => B::float_transpose(w_df),
        };
        B::float_matmul(take_rows::<B>(&x_nd, rows), w)
    };
    let products: Vec<_> = groups.occupied().map(product_of).collect();
    if products.is_empty() {
        let width = match orientation {
            Orientation::AsStored => f,
            Orientation::Transposed => d,
        };
        return B::float_zeros(Shape::new([0, width]), &x_nd.device(), x_nd.dtype().into());
    }
    B::float_cat(products, 0)
}

fn take_rows<B: Backend>(x_nd: &FloatTensor<B>, rows: Range<usize>) -> FloatTensor<B> {
    B::float_slice(x_nd.clone(), &[Slice::from(rows)])
}

impl GroupedMatmul for Flex {}

#[cfg(feature = "cube")]
impl GroupedMatmul for burn_cubecl::CubeBackend {}

impl<B: GroupedMatmul, C: CheckpointStrategy> GroupedMatmul for Autodiff<B, C> {
    fn grouped_matmul(
        x_nd: FloatTensor<Self>,
        w_edf: FloatTensor<Self>,
        groups: Groups,
    ) -> FloatTensor<Self> {
        let prepared =
            GroupedMatmulBackward.prepare::<C>([x_nd.node(), w_edf.node()]).compute_bound().stateful();
        match prepared {
            OpsKind::Tracked(mut prepared) => {
                let state = SavedInputs {
                    x_nd: w_edf.is_tracked().then(|| prepared.checkpoint(&x_nd)),
                    w_edf: x_nd.is_tracked().then(|| prepared.checkpoint(&w_edf)),
                    groups: groups.clone(),
                };
                let y_nf = B::grouped_matmul(x_nd.into_primitive(), w_edf.into_primitive(), groups);
                prepared.finish(state, y_nf)
            }
            OpsKind::UnTracked(prepared) => {
                prepared.finish(B::grouped_matmul(x_nd.into_primitive(), w_edf.into_primitive(), groups))
            }
        }
    }
}

#[derive(Debug)]
struct GroupedMatmulBackward;

/// What the backward pass reads again: each input only if the other one has a gradient.
#[derive(Debug, Clone)]
struct SavedInputs {
    x_nd: Option<NodeId>,
    w_edf: Option<NodeId>,
    groups: Groups,
}

impl<B: GroupedMatmul> Backward<B, 2> for GroupedMatmulBackward {
    type State = SavedInputs;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy_nf = grads.consume::<B>(&ops.node);
        let SavedInputs { x_nd, w_edf, groups } = ops.state;
        let x_nd = x_nd.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let w_edf = w_edf.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let [x_node, w_node] = ops.parents;
        if let (Some(node), Some(w_edf)) = (x_node, w_edf) {
            let dx_nd = B::grouped_matmul_input_gradient(dy_nf.clone(), w_edf, groups.clone());
            grads.register::<B>(node.id, dx_nd);
        }
        if let (Some(node), Some(x_nd)) = (w_node, x_nd) {
            grads.register::<B>(node.id, B::grouped_matmul_weight_gradient(x_nd, dy_nf, groups));
        }
    }
}
