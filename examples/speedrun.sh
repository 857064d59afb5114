#!/bin/sh
# The whole story on samples, in minutes on a CPU: filter → train → boost → judge → publish.
#
#   bash examples/speedrun.sh my-name              (shows what would be published, and sends nothing)
#   bash examples/speedrun.sh my-name --send       (needs `hf auth login`, or HF_TOKEN)
#
# MODEL is tuned and JUDGE judges, both ids on the Hub. Models this small show the mechanics and no quality: most rows stay
# as they were, and the report says that the judge is unfit.
set -eu
owner=${1:?usage: bash examples/speedrun.sh OWNER [--send]}
case "${2:-}" in --send) how="" ;; *) how="--dry-run" ;; esac
model=${MODEL:-HuggingFaceTB/SmolLM2-135M-Instruct}
judge=${JUDGE:-$model}
out=${OUT:-speedrun}
here=$(dirname "$0")
mkdir -p "$out"

echo "== filter: the edits of each language that changed the most"
midb filter "$here/train_own/revised.jsonl" -k 6 --out "$out/top.jsonl"

echo "== train: a LoRA on them"
cat > "$out/recipe.yaml" <<END
model: $model
dataset: $out/top.jsonl
output_dir: $out/booster
k: null
num_train_epochs: 1
per_device_train_batch_size: 2
END
midb train "$out/recipe.yaml"

echo "== boost: rows that it never saw"
midb boost "$here/quickstart/sample.jsonl" --limit 8 --model "$out/booster" --max-tokens 200 --out "$out/boosted.jsonl"

echo "== judge: each row against its raw side, in both orders, with controls"
midb judge "$out/boosted.jsonl" --model "$judge" --controls 1 --max-tokens 64 --out "$out/verdicts.jsonl"
midb report "$out/verdicts.jsonl" --names boosted,raw --out "$out/report.md" --plot "$out/report.png"

echo "== publish: the data, the booster and the metric, each with its card"
midb push dataset "$out/boosted.jsonl" "$owner/speedrun-boosted" --verdicts "$out/verdicts.jsonl" $how
midb push adapter "$out/booster" "$owner/speedrun-booster" --base-model "$model" $how
midb push metric "$owner/pairwise_judge" $how
