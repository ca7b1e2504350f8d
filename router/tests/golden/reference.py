"""Writes the numbers in this folder with PyTorch, by other means than the crate's: autograd, `torch.quantile`, and
Sinkhorn scaling vectors instead of logarithms.

    python reference.py

Written with torch 2.10.0, CPU, float64.
"""

import json
import pathlib

import torch

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
HERE = pathlib.Path(__file__).parent


def rounded(x):
    """Inputs with few digits: short files, and the same number on both sides."""
    return (x * 1000).round() / 1000


def write(name, cases):
    flat = [
        {key: value.flatten().tolist() if torch.is_tensor(value) else value for key, value in case.items()}
        for case in cases
    ]
    (HERE / name).write_text(json.dumps(flat, indent=1) + "\n")


def quantile_case(num_tokens, num_experts, top_k):
    scores = rounded(torch.sigmoid(torch.randn(num_tokens, num_experts)))
    bias = rounded(torch.randn(num_experts) * 0.1)
    cutoff = (scores + bias).topk(top_k + 1, dim=1).values[:, -1:]
    solved = torch.quantile(cutoff - scores, top_k / num_experts, dim=0)
    return {
        "num_experts": num_experts,
        "top_k": top_k,
        "scores_te": scores,
        "bias_e": bias,
        "solved_e": solved - solved.mean(),
        "histogram_bin_width": ((bias.max() - bias.min() + 2) / 1000).item(),
    }


def squared_variation(load):
    return load.var(correction=0) / load.mean() ** 2


def noisy_case(num_tokens, num_experts, top_k):
    clean = rounded(torch.randn(num_tokens, num_experts)).requires_grad_()
    std = rounded(torch.nn.functional.softplus(torch.randn(num_tokens, num_experts)) + 0.01).requires_grad_()
    noisy = rounded(clean + std * torch.randn(num_tokens, num_experts)).detach()
    chosen = noisy.topk(top_k, dim=1).indices
    masked = torch.full_like(noisy, -torch.inf).scatter(1, chosen, noisy.gather(1, chosen))
    gates = masked.softmax(dim=1).requires_grad_()
    importance_loss = squared_variation(gates.sum(0))
    (importance_gradient,) = torch.autograd.grad(importance_loss, gates)
    # The threshold of each expert by its definition: take the expert out of the row, then the k-th of the rest.
    others = [[e for e in range(num_experts) if e != expert] for expert in range(num_experts)]
    threshold = torch.stack([noisy[:, other].topk(top_k, dim=1).values[:, -1] for other in others], dim=1)
    probabilities = torch.distributions.Normal(0.0, 1.0).cdf((clean - threshold) / std)
    load_loss = squared_variation(probabilities.sum(0))
    clean_gradient, std_gradient = torch.autograd.grad(load_loss, (clean, std))
    return {
        "num_experts": num_experts,
        "top_k": top_k,
        "clean_logits_te": clean.detach(),
        "noise_std_te": std.detach(),
        "noisy_logits_te": noisy,
        "gates_te": gates.detach(),
        "importance_loss": importance_loss.item(),
        "importance_gradient_te": importance_gradient,
        "load_probabilities_te": probabilities.detach(),
        "load_loss": load_loss.item(),
        "clean_logits_gradient_te": clean_gradient,
        "noise_std_gradient_te": std_gradient,
    }


def sinkhorn_case(num_tokens, num_experts, temperature):
    logits = rounded(torch.randn(num_tokens, num_experts))
    kernel = (logits / temperature).exp()
    rows, columns = torch.ones(num_tokens), torch.ones(num_experts)
    for _ in range(20_000):
        columns = (num_tokens / num_experts) / (kernel.T @ rows)
        rows = 1 / (kernel @ columns)
    return {
        "num_experts": num_experts,
        "temperature": temperature,
        "logits_te": logits,
        "plan_te": rows[:, None] * kernel * columns,
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    write("quantile.json", [quantile_case(9, 4, 1), quantile_case(16, 8, 3), quantile_case(1, 3, 2)])
    write("noisy.json", [noisy_case(5, 4, 1), noisy_case(4, 6, 3), noisy_case(1, 3, 2)])
    write("sinkhorn.json", [sinkhorn_case(8, 4, 1.0), sinkhorn_case(3, 5, 0.5)])
