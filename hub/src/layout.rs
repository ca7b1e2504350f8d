//! Where the values of a parameter lie in a published file.
//!
//! Ours are `[in, out]` matrices, vectors, and stacks of either over experts. A published tensor may
//! have its matrices the other way round, hold several of ours side by side, or have their output
//! channels in another order. One description serves both directions: reading takes the named
//! channels, writing puts them back.

use std::ops::Range;

use switchyard_model::ParameterName;

/// How one of our parameters is made of published tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct Mapping {
    /// Ours.
    pub ours: ParameterName,
    /// The ways in which it is published, the usual one first. Each has one part for each matrix or
    /// vector of a stack, or one.
    pub forms: Vec<Vec<Part>>,
}

/// A matrix or vector of ours in a published tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// The published tensor.
    pub name: String,
    /// Its whole shape.
    pub shape: Vec<usize>,
    /// Which matrix or vector of a stack; `None` if it is none.
    pub item: Option<usize>,
    /// Which way its matrices lie.
    pub orientation: Orientation,
    /// Which of its output channels, in our order.
    pub channels: Channels,
}

/// Which way a published matrix lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orientation {
    /// `[out, in]`, as PyTorch's `Linear` has it: the transpose of ours.
    OutIn,
    /// `[in, out]`, as ours.
    InOut,
    /// A vector of output channels.
    Vector,
}

/// Output channels of a published matrix or vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Channels {
    /// All, in order.
    All,
    /// These, in order.
    Range(Range<usize>),
    /// These, in this order.
    Listed(Vec<usize>),
}

impl Channels {
    /// Of `num_channels` in all, those that are meant, in our order.
    fn indices(&self, num_channels: usize) -> Box<dyn Iterator<Item = usize> + '_> {
        match self {
            Self::All => Box::new(0..num_channels),
            Self::Range(range) => Box::new(range.clone()),
            Self::Listed(listed) => Box::new(listed.iter().copied()),
        }
    }

    fn len(&self, num_channels: usize) -> usize {
        match self {
            Self::All => num_channels,
            Self::Range(range) => range.len(),
            Self::Listed(listed) => listed.len(),
        }
    }
}

impl Part {
    /// A whole `[out, in]` matrix.
    pub fn linear(name: impl Into<String>, [input, output]: [usize; 2]) -> Self {
        Self::new(name, vec![output, input], Orientation::OutIn)
    }

    /// A whole `[in, out]` matrix, or an embedding.
    pub fn as_is(name: impl Into<String>, [input, output]: [usize; 2]) -> Self {
        Self::new(name, vec![input, output], Orientation::InOut)
    }

    /// A whole vector.
    pub fn vector(name: impl Into<String>, width: usize) -> Self {
        Self::new(name, vec![width], Orientation::Vector)
    }

    /// A whole tensor.
    pub fn new(name: impl Into<String>, shape: Vec<usize>, orientation: Orientation) -> Self {
        Self { name: name.into(), shape, item: None, orientation, channels: Channels::All }
    }

    /// The matrix or vector number `item` of a stack of `num_items` such tensors.
    pub fn stacked(self, item: usize, num_items: usize) -> Self {
        let shape = [vec![num_items], self.shape].concat();
        Self { shape, item: Some(item), ..self }
    }

    /// Some of the output channels, of so many in all.
    pub fn channels(self, channels: Channels, num_channels: usize) -> Self {
        let mut shape = self.shape;
        let axis = match self.orientation {
            Orientation::InOut => shape.len() - 1,
            Orientation::OutIn => shape.len() - 2,
            Orientation::Vector => shape.len() - 1,
        };
        shape[axis] = num_channels;
        Self { shape, channels, ..self }
    }

    /// `[in, out]` of the published matrix; a vector has no input.
    fn sizes(&self) -> [usize; 2] {
        let n = self.shape.len();
        match self.orientation {
            Orientation::OutIn => [self.shape[n - 1], self.shape[n - 2]],
            Orientation::InOut => [self.shape[n - 2], self.shape[n - 1]],
            Orientation::Vector => [1, self.shape[n - 1]],
        }
    }

    /// Shape of ours.
    pub(crate) fn our_shape(&self) -> Vec<usize> {
        let [input, output] = self.sizes();
        let width = self.channels.len(output);
        if self.orientation == Orientation::Vector { vec![width] } else { vec![input, width] }
    }

    /// Elements that the part takes.
    pub fn num_elements(&self) -> usize {
        let [input, output] = self.sizes();
        input * self.channels.len(output)
    }

    /// Elements of the published matrix or vector that it is taken from.
    pub fn num_item_elements(&self) -> usize {
        let [input, output] = self.sizes();
        input * output
    }

    /// Pairs of places, in the published matrix and in ours.
    fn places(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let [input, output] = self.sizes();
        let [input_stride, output_stride] = match self.orientation {
            Orientation::OutIn => [1, input],
            Orientation::InOut | Orientation::Vector => [output, 1],
        };
        let width = self.channels.len(output);
        self.channels.indices(output).enumerate().flat_map(move |(column, channel)| {
            (0..input).map(move |row| (row * input_stride + channel * output_stride, row * width + column))
        })
    }

    /// Fills `ours`, `[in, out]` row by row, from the published matrix.
    ///
    /// # Panics
    /// If either has not as many elements as the part says.
    pub fn gather(&self, theirs: &[f32], ours: &mut [f32]) {
        assert!(theirs.len() == self.num_item_elements() && ours.len() == self.num_elements());
        self.places().for_each(|(from, to)| ours[to] = theirs[from]);
    }

    /// Fills its places in the published matrix from `ours`.
    ///
    /// # Panics
    /// As [`Part::gather`].
    pub fn scatter(&self, ours: &[f32], theirs: &mut [f32]) {
        assert!(theirs.len() == self.num_item_elements() && ours.len() == self.num_elements());
        self.places().for_each(|(to, from)| theirs[to] = ours[from]);
    }
}

/// The channels of heads whose turned part has neighbours (2m, 2m + 1) as pairs, in the order of
/// halves (m, m + d/2), which ours has; or of heads of which only the first `d_rotary` channels are
/// turned, in halves. Channels that are not turned stay in order, in the places that are left.
pub fn rotary_channels(num_heads: usize, d_head: usize, d_rotary: usize, pairs: Pairs) -> Channels {
    let (half, num_pairs) = (d_head / 2, d_rotary / 2);
    let mut of_head = vec![None; d_head];
    for pair in 0..num_pairs {
        let (first, second) = match pairs {
            Pairs::Halves => (pair, pair + num_pairs),
            Pairs::Neighbours => (2 * pair, 2 * pair + 1),
        };
        (of_head[pair], of_head[pair + half]) = (Some(first), Some(second));
    }
    let mut still = d_rotary..d_head;
    let of_head: Vec<usize> =
        of_head.into_iter().map(|place| place.unwrap_or_else(|| still.next().unwrap_or(0))).collect();
    let listed: Vec<usize> =
        (0..num_heads).flat_map(|head| of_head.iter().map(move |channel| head * d_head + channel)).collect();
    if listed.is_sorted() { Channels::All } else { Channels::Listed(listed) }
}

/// Which channels a rotary embedding turns together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairs {
    /// m and m + r/2 of r.
    Halves,
    /// 2m and 2m + 1.
    Neighbours,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(part: &Part, theirs: &[f32]) -> Vec<f32> {
        let mut ours = vec![f32::NAN; part.num_elements()];
        part.gather(theirs, &mut ours);
        ours
    }

    #[test]
    fn a_linear_is_transposed_and_a_slice_keeps_its_channels() {
        // Three output channels of two inputs each.
        let theirs = [11.0, 12.0, 21.0, 22.0, 31.0, 32.0];
        assert_eq!(gathered(&Part::linear("w", [2, 3]), &theirs), [11.0, 21.0, 31.0, 12.0, 22.0, 32.0]);
        let part = Part::linear("w", [2, 1]).channels(Channels::Range(1..2), 3);
        assert_eq!((part.shape.clone(), gathered(&part, &theirs)), (vec![3, 2], vec![21.0, 22.0]));
        let part = Part::vector("b", 2).channels(Channels::Listed(vec![2, 0]), 3);
        assert_eq!(gathered(&part, &[1.0, 2.0, 3.0]), [3.0, 1.0]);
    }

    #[test]
    fn what_is_written_back_is_what_was_read() {
        let theirs: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let listed = Channels::Listed(vec![5, 1, 3]);
        let rest = Channels::Listed(vec![0, 4, 2]);
        for orientation in [Orientation::OutIn, Orientation::InOut] {
            let whole = Part::new("w", vec![6, 4], orientation);
            let whole =
                if orientation == Orientation::InOut { Part { shape: vec![4, 6], ..whole } } else { whole };
            let mut written = vec![f32::NAN; 24];
            for channels in [listed.clone(), rest.clone()] {
                let part = Part { channels, ..whole.clone() };
                part.scatter(&gathered(&part, &theirs), &mut written);
            }
            assert_eq!(written, theirs);
        }
    }

    #[test]
    fn pairs_lie_in_halves_and_the_rest_between() {
        assert_eq!(rotary_channels(1, 6, 6, Pairs::Neighbours), Channels::Listed(vec![0, 2, 4, 1, 3, 5]));
        assert_eq!(rotary_channels(2, 4, 4, Pairs::Halves), Channels::All);
        // Channels 0 and 1 turn together, 2 to 5 do not.
        assert_eq!(rotary_channels(1, 6, 2, Pairs::Halves), Channels::Listed(vec![0, 2, 3, 1, 4, 5]));
    }
}
