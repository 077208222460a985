"""PyTorch's rates on a GPU: a copy within its memory, and products of matrices of 8192.

What benches/src/bin/gpu_check.rs measures as ``copy`` and ``products``. The last line on stdout is
one JSON object. Needs torch==2.11.* with CUDA.
"""

import json
import time

import torch

SIZE, COPY_BYTES, TURNS = 8192, 1 << 30, 20


def seconds(call):
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(TURNS):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / TURNS


def product(dtype, tf32):
    torch.backends.cuda.matmul.allow_tf32 = tf32
    a, b = (torch.rand(SIZE, SIZE, device="cuda").mul(2).sub(1).to(dtype) for _ in range(2))
    return round(2 * SIZE**3 / seconds(lambda: a @ b) / 1e12)


def main():
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    result = {
        "copy_gb_per_second": round(2 * COPY_BYTES / seconds(lambda: target.copy_(source)) / 1e9),
        "f32_tflops": product(torch.float32, False),
        "tf32_tflops": product(torch.float32, True),
        "bf16_tflops": product(torch.bfloat16, False),
        "device": torch.cuda.get_device_name(),
        "peer_version": f"torch {torch.__version__}",
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
