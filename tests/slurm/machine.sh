#!/usr/bin/env bash
# Process 1 of a simulated machine, in namespaces of its own: machine.sh FOLDER NAME ADDRESS COMMAND...
# It runs COMMAND and lives until its standard input ends, which is how whoever started it pulls the plug.
set -euo pipefail
folder=$1 name=$2 address=$3
shift 3

read -r pid _ </proc/self/stat # as the machine that started this one counts
mount --make-rprivate /
mount -t proc proc /proc
mount --bind "$folder/hosts" /etc/hosts
echo "$name" >/proc/sys/kernel/hostname
ip link set lo up
if [ "$name" = login ]; then
  ip link add bridge type bridge
  ip addr add "$address/24" dev bridge
  ip link set bridge up
fi
echo "$pid" >"$folder/$name.pid.part"
mv "$folder/$name.pid.part" "$folder/$name.pid"
if [ "$name" != login ]; then
  until ip link set eth0 up 2>/dev/null; do sleep 0.02; done # the cable is plugged in from outside
  ip addr add "$address/24" dev eth0
fi
"$@"
touch "$folder/$name.up"
cat >/dev/null # not exec: bash stays process 1 and buries orphans
