#!/usr/bin/env bash
# One node of a training Job on Kubernetes: run.sh pretrain|finetune RECIPE [--set key.path=value ...]
# Started by train.yaml, which sets the environment. Never run on a cluster; tested with two nodes on one machine.
#
# Exit codes, by which the Job's podFailurePolicy decides:
#   0     the run is finished
#   75    to be continued: stopped with a new checkpoint, or failed with one after 10 minutes or more, or another node
#         has to be joined anew. The pod is replaced and that counts against no limit
#   2     called wrongly: the Job fails
#   else  it ended without progress: the pod is replaced, backoffLimitPerIndex times
#
# Ranks cannot join a group that is under way, so whichever pod ends, all have to. Each start of a pod writes its own
# id into the Job's folder beside the checkpoints. Node 0 waits for all nodes and writes the roster of their ids; who
# is named there trains, once, and gives up when the roster no longer holds.
set -euo pipefail
readonly to_be_continued=75

misuse() {
    echo "error: $1" >&2
    exit 2
}
for name in JOB_UID JOB_COMPLETION_INDEX NODES GPUS MASTER_ADDR RUN; do
    [ -n "${!name:-}" ] || misuse "$name is not set: start this by launchers/kubernetes/train.yaml."
done
cd "$(dirname "$0")/../.."
if [ $# -lt 2 ] || [ ! -f "launchers/$1.py" ]; then
    misuse "usage: $0 pretrain|finetune RECIPE [--set key.path=value ...]"
fi
[ -f "$2" ] || misuse "there is no recipe $2: name one in the image or on the storage claim."
readonly me=$JOB_COMPLETION_INDEX
((me < NODES)) || misuse "this is node $me of NODES=$NODES: set NODES to the Job's completions."

readonly folder=$RUN/.kubernetes/$JOB_UID
mkdir -p "$folder"
private=$(mktemp -d)
# Not on the storage claim: the ranks agree among themselves, so it is enough that those of one node see the file.
export DDSCALE_STOP_FILE=$private/stop DDSCALE_FINISHED_FILE=$private/finished
trap 'rm -rf "$private"' EXIT
# The kubelet signals this script alone, as process 1. A file, because DeepSpeed's launcher answers a signal by killing
# its ranks 30 s later, checkpoint or not.
trap 'touch "$DDSCALE_STOP_FILE"' TERM INT

publish() { # NAME TEXT: a file of the folder, there as a whole or not at all
    printf '%s\n' "$2" > "$folder/.$1.$id"
    mv "$folder/.$1.$id" "$folder/$1"
}
registered() { # the ids of all nodes, one a line
    for ((node = 0; node < NODES; node++)); do cat "$folder/node-$node" 2>/dev/null || echo "no-node-$node"; done
}
latest() { cat "$RUN/checkpoints/latest" 2>/dev/null || true; }

id=$(cat /proc/sys/kernel/random/uuid)
publish "node-$me" "$id"
if [ "$me" = 0 ] && [ -e "$folder/roster" ]; then
    # Whoever is still named there waits for the node 0 that was: without a roster it gives up.
    cat "$folder/roster" >> "$folder/ended"
    rm -f "$folder/roster"
fi
told=
until grep -qxs "$id" "$folder/roster"; do
    [ ! -e "$folder/finished" ] || exit 0
    [ ! -e "$DDSCALE_STOP_FILE" ] || exit $to_be_continued
    waiting="node 0"
    if [ "$me" = 0 ]; then
        ids=$(registered)
        # Not there yet, or there from before and about to end.
        waiting=$(grep -nxFf <(grep -o 'no-node-.*' <<< "$ids"; cat "$folder/ended" 2>/dev/null) <<< "$ids" |
            cut -d: -f1 | awk '{printf "node %d ", $1 - 1}') || true
        [ -n "$waiting" ] || publish roster "$ids"
    fi
    [ "$waiting" = "$told" ] || [ -z "$waiting" ] || echo "node $me of $NODES waits for $waiting"
    told=$waiting
    sleep 1
done
roster=$(cat "$folder/roster")
before=$(latest)
began=$SECONDS

# The launcher only warns about a hostfile that is missing and then trains on one node: so it is written here. The names
# in it are not looked up.
for ((node = 0; node < NODES; node++)); do echo "node-$node slots=$GPUS"; done > "$private/hostfile"
set -m # the launcher and its ranks become one process group
deepspeed --no_ssh --node_rank "$me" --hostfile "$private/hostfile" \
    --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-29500}" \
    "launchers/$1.py" "${@:2}" --set "run=$RUN" &
launcher=$!
set +m

# Node 0 watches all others, they watch the roster, which a new node 0 takes away: few files to read on many nodes.
together() { if [ "$me" = 0 ]; then [ "$(registered)" = "$roster" ]; else grep -qxs "$id" "$folder/roster"; fi; }
while kill -0 "$launcher" 2>/dev/null; do
    if ! together; then
        echo "node $me ends: another node was replaced, and all have to start again"
        kill -KILL -- "-$launcher" 2>/dev/null || true
        exit $to_be_continued
    fi
    sleep 1
done
status=0
wait "$launcher" || status=$?

if [ "$status" = 0 ] && [ -e "$DDSCALE_FINISHED_FILE" ]; then
    # For a pod that is replaced although its peers have finished: it would wait for them for ever.
    publish finished "$id"
    exit 0
fi
# What fails soon after each start may save a few steps each time, and would be started for ever.
if [ "$(latest)" != "$before" ] && { [ "$status" = 0 ] || ((SECONDS - began >= ${DDSCALE_QUICK_FAILURE_S:-600})); }; then
    exit $to_be_continued
fi
# DeepSpeed's launcher reports 0 when a signal killed it.
exit $((status ? status : 1))
