#!/usr/bin/env bash
# Make the checkpoint of the package from the images of the specimens alone:
#
#     IMAGES=../shared/data bash training/default_checkpoint.sh
#
# Each call performs the next step, which takes at most about nine minutes, and prints what comes next. Repeat the call until it prints
# "done". Results are stored in RUN. No step needs the internet. On a GPU, pass CONFIG=training/accelerate_configs/gpu.yaml.
set -euo pipefail
cd "$(dirname "$0")/.."
IMAGES=${IMAGES:-../shared/data} RUN=${RUN:-runs/default} MINUTES=${MINUTES:-8}
CONFIG=${CONFIG:-training/accelerate_configs/cpu_2_processes.yaml} PYTHON=${PYTHON:-.venv/bin/python}
mkdir -p "$RUN"

finish() { echo "$1"; exit 0; }

# train NAME FLAGS…: run a training for MINUTES at most; the next call resumes it.
train() {
    local name=$1
    shift
    OMP_NUM_THREADS=1 "$PYTHON" -m accelerate.commands.launch --config_file "$CONFIG" --mixed_precision bf16 training/train_haze_matching.py \
        --dataset_name "$RUN/specimens" --pixel_packing 2 --noise_corner_frequency 0.2 \
        --zero_state_share 0.6 --posterior_mean_share 0.05 --t_sampling uniform --balanced_loss --mean_error_weight 0.5 \
        --max_validation_pairs 16 --checkpointing_steps 500 --report_to none --max_train_minutes "$MINUTES" \
        --resume_from_checkpoint latest --output_dir "$RUN/$name" "$@"
}

# make_pairs NAME SPLIT SEED NUMBER SIZE: simulate NUMBER pairs of SIZE pixels a side from specimens of SPLIT.
make_pairs() {
    "$PYTHON" -m haze_pipeline simulate "$RUN/$1" --from-images "$RUN/specimens" --split "$2" --seed "$3" --num-images "$4" --size "$5"
}

if [ ! -e "$RUN/specimens" ]; then
    "$PYTHON" training/build_specimen_dataset.py --images_dir "$IMAGES" --output_dir "$RUN/specimens"
    finish "next: the first training"
fi

# 1. Patches of 160 px at a constant learning rate, in two trainings with different data and noise.
if [ ! -e "$RUN/first/model_index.json" ]; then
    train first --simulated_fraction 0.25 --simulation_size 288 --patches_per_field 96 --resolution 160 --train_batch_size 8 \
        --max_train_steps 2000 --learning_rate 1e-3 --lr_scheduler constant_with_warmup --validation_steps 1000 --seed 41
    finish "next: the rest of the first training, or the second training"
fi
if [ ! -e "$RUN/second/model_index.json" ]; then
    train second --init_from "$RUN/first" --simulated_fraction 0.3 --simulation_seed 6 --simulation_size 288 \
        --patches_per_field 96 --resolution 160 --train_batch_size 8 --max_train_steps 1500 --learning_rate 1e-3 \
        --lr_warmup_steps 100 --lr_scheduler constant_with_warmup --validation_steps 1000 --seed 42
    finish "next: the rest of the second training, or the third training"
fi

# 2. Patches of 256 px at a learning rate that falls to zero.
if [ ! -e "$RUN/third/model_index.json" ]; then
    train third --init_from "$RUN/second" --simulated_fraction 0.3 --simulation_seed 7 --simulation_size 320 \
        --patches_per_field 64 --resolution 256 --train_batch_size 4 --max_train_steps 3600 --learning_rate 1e-3 \
        --lr_warmup_steps 100 --lr_scheduler linear --ema_decay 0.998 --validation_steps 1000 --seed 43
    finish "next: the rest of the third training, or the solver"
fi

# 3. The solver of the preset `balanced` and the calibration, on a copy of the network. Simulation seeds: 1, 6 and 7 for training, 2 for
# validation, 8 for the prediction of the gain, 3 and 5 for tests.
if [ ! -e "$RUN/solved" ]; then
    [ -e "$RUN/pairs" ] || make_pairs pairs train 1 12 192
    rm -rf "$RUN/solving"
    mkdir "$RUN/solving"
    cp -r "$RUN/third/unet" "$RUN/third/scheduler" "$RUN/third/model_index.json" "$RUN/solving/"
    "$PYTHON" training/fit_bespoke_solver.py --model "$RUN/solving" --train_data_dir "$RUN/pairs" --num_inference_steps 6
    mv "$RUN/solving" "$RUN/solved"
    finish "next: the calibration"
fi
if [ ! -e "$RUN/calibrated" ]; then
    [ -e "$RUN/calibration_pairs" ] || make_pairs calibration_pairs validation 4 120 192
    [ -e "$RUN/simulated_pairs" ] || "$PYTHON" -m haze_pipeline simulate "$RUN/simulated_pairs" --seed 8 --num-images 200 --size 192
    "$PYTHON" -m haze_pipeline calibrate "$RUN/calibration_pairs" --gain-pairs "$RUN/simulated_pairs" --model "$RUN/solved" \
        --preset balanced -o "$RUN/calibrated"
    finish "next: the checkpoint of the package"
fi

# 4. Store the checkpoint in the package, in half precision.
"$PYTHON" - "$RUN/calibrated" <<'END'
import json
import shutil
import sys
from pathlib import Path

import torch

from haze_pipeline import HazeMatchingPipeline
from haze_pipeline.pipeline_haze_matching import DEFAULT_CHECKPOINT

pipe = HazeMatchingPipeline.from_pretrained(sys.argv[1], low_cpu_mem_usage=False).to(torch.float16)
complete = DEFAULT_CHECKPOINT.with_name("incomplete_checkpoint")
pipe.save_pretrained(complete, variant="fp16", with_code=False)
index = json.loads((complete / "model_index.json").read_text())
index.pop("_name_or_path", None)
(complete / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
shutil.rmtree(DEFAULT_CHECKPOINT)
complete.rename(DEFAULT_CHECKPOINT)
run = Path(sys.argv[1]).parent
first, second, third = (
    json.loads((run / name / "training.json").read_text()) for name in ("first", "second", "third")
)
record = {"earlier_stages": [first, second], "training": third}
Path("training/default_checkpoint.json").write_text(json.dumps(record, indent=2) + "\n")
END
finish "done: haze_pipeline/default_checkpoint is complete; measure it with \`make bench\`"
