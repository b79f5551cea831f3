#!/bin/sh
# A program with checkpoints of its own: counts, and keeps its count when it is told that it has to stop.
#
# beo submit --signal USR1@60 jobs/counter.sh 3000
steps=${1:-300}
kept=$BEO_CHECKPOINT_DIR/count # a folder that outlives the attempt, and goes where the job goes
trap 'echo "$count" > "$kept.new"; mv "$kept.new" "$kept"; exit 1' USR1 # not 0: it isn't done
count=0
if test -e "$kept"; then
  count=$(cat "$kept")
  echo "going on from $count"
fi
while test "$count" -lt "$steps"; do
  count=$((count + 1))
  sleep 0.02
done
echo "counted to $count"
