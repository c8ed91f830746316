#!/usr/bin/env bash
# Measure the training step on a GPU, in two parts of at most nine minutes each.
#
#   tools/bench_gpu.sh 1 OUT      speed: base, large, small; small batches; CUDA graphs; kernels; heads
#   tools/bench_gpu.sh 2 OUT      FSDP; equality; attention; bf16 against float32; optimizer states;
#                                 selective activation checkpointing; crops in the loader and on the GPU
#   DEVICE=cpu tools/bench_gpu.sh 1 OUT     dry run: tiny sizes, not compiled
#
# Needs the repository, PyTorch, timm and einops. OUT/NAME.json holds a result, OUT/NAME.log the output,
# OUT/summary.txt the table. PYTHON names the interpreter, SECONDS_PER_PART the limit (520).
set -u
part=${1:?part 1 or 2} out=${2:?folder of the results}
cd "$(dirname "$0")/.." || exit 1
export PYTHONPATH=$PWD
python=${PYTHON:-python3} device=${DEVICE:-cuda} deadline=$((SECONDS + ${SECONDS_PER_PART:-520}))
mkdir -p "$out"

# measure NAME LIMIT_S COMMAND...: run it, unless the part's time is up
measure() {
    local name=$1 limit=$2 left=$((deadline - SECONDS))
    shift 2
    if [ "$left" -lt 15 ]; then echo "$name: no time left"; return; fi
    [ "$limit" -lt "$left" ] || limit=$left
    local begin=$SECONDS
    if timeout "$limit" "$@" >"$out/$name.log" 2>&1; then echo "$name: $((SECONDS - begin)) s"
    else echo "$name: failed with $?, see $out/$name.log"; fi
}
step() { # step NAME LIMIT_S FLAGS...: one benchmark of the training step
    local name=$1 limit=$2
    shift 2
    measure "$name" "$limit" "$python" tools/bench_step.py --device "$device" \
        --output_json "$out/$name.json" $compile $steps "$@"
}
if [ "$device" = cpu ]; then
    large=tiny base=tiny small=tiny big=2 quarter=1 full=4 compile=
    steps="--steps 1 --warmup 1 --input_size 32 --num_encoded_tokens 3 --precision fp32"
    graphs=default side=32 low=fp32 train_steps=4 rooms=8 batch=4
else
    large=large base=base small=small big=256 quarter=64 full=512 compile=--compile
    steps="--steps 5 --warmup 2 --precision bf16"
    graphs=reduce-overhead side=224 low=bf16 train_steps=500 rooms=512 batch=64
fi

case $part in
1)
    step base-256 130 --model $base --batch $big --plain_precision ${low/bf16/fp16} \
        --kernels "$out/base-256-kernels.txt"
    step large-256 170 --model $large --batch $big --plain_precision ${low/bf16/fp16} \
        --kernels "$out/large-256-kernels.txt"
    step small-512 90 --model $small --batch $full --no_bases
    step base-64 90 --model $base --batch $quarter --no_bases
    step base-64-graphs 110 --model $base --batch $quarter --no_bases --compile_mode $graphs
    step base-256-graphs 110 --model $base --batch $big --no_bases --compile_mode $graphs
    measure heads 60 "$python" tools/bench_heads.py --model $small --input_size $side \
        --batch $batch --device "$device"
    ;;
2)
    step base-256-fsdp 130 --model $base --batch $big --no_bases --sharded
    step base-16-equality 110 --model $base --batch $((quarter / 4 + 1)) --precision fp32 --check \
        --no_bases
    step base-256-selective 110 --model $base --batch $big --no_bases --grad_checkpointing selective
    measure kernels 40 "$python" tools/bench_kernels.py --model $base --batch $big --side $side \
        --device "$device" --output_json "$out/kernels.json"
    measure crops 60 "$python" tools/bench_crops.py --batch $big --side $side --rounds 3 \
        --device "$device" --output_json "$out/crops.json"
    measure rooms 60 "$python" tools/make_rooms.py --out "$out/rooms" --train $rooms --val 16 \
        --size $side --workers "$(nproc)"
    for seed in 0 1; do
        for precision in $low fp32; do
            measure "run-$precision-$seed" 90 "$python" run_pretraining_multimae.py \
                --data_path "$out/rooms/train" --eval_data_path= --standardize_depth \
                --modalities '{semseg: {num_classes: 41}}' --model pretrain_multimae_$small \
                --input_size $side --num_encoded_tokens $((side * side / 512)) \
                --batch_size $batch --blr 1e-3 --warmup_epochs 0 --warmup_steps 2 --epochs 1000 \
                --schedule_to_max_steps --max_steps $train_steps --log_every $((train_steps / 4)) \
                --num_workers 8 --precision $precision --seed $seed --device "$device" $compile \
                --output_dir "$out/run-$precision-$seed" --no_save_ckpt --num_pictures 0 \
                --attention auto
        done
    done
    measure states 200 "$python" tools/bench_states.py --model $base --batch $batch \
        --input_size $side --steps $train_steps --device "$device" $compile \
        --data_path "$out/rooms/train" --output_json "$out/states.json"
    ;;
*) echo "part 1 or 2, not $part" >&2; exit 2 ;;
esac
"$python" - "$out" <<'EOF' | tee "$out/summary.txt"
import json, sys
from pathlib import Path

out = Path(sys.argv[1])
for file in sorted(out.glob("*.json")):
    result = json.loads(file.read_text())
    if "fast" not in result:
        print(f"{file.stem}: {json.dumps(result)}")
        continue
    for name in ("fast", "sharded", "plain"):
        if name in result:
            row = result[name]
            print(f"{file.stem:<18}{name:<8}{1e3 * row['step_s']:9.2f} ms {row['images_per_s']:8.0f} "
                  f"img/s {row['tflop_per_s']:7.1f} TFLOP/s, {row['mfu']:.0%} of its products' rate")
    if "speed_up" in result:
        print(f"{file.stem:<18}{result['speed_up']['best']:.2f} times the plain step")
    if "gap" in result:
        print(f"{file.stem:<18}largest difference: {result['gap']}")
for log in sorted(out.glob("run-*/log.jsonl")):
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    last = [row for row in rows if row["kind"] == "train"][-1]
    shown = ("step", "loss", "images_per_s", "mfu", "data_wait", "memory_peak_gb")
    print(f"{log.parent.name:<18}" + ", ".join(f"{k} {last[k]:.4g}" for k in shown if k in last))
if (out / "heads.log").is_file():
    print((out / "heads.log").read_text(), end="")
EOF
