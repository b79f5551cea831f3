#!/bin/sh
# beo: makes this box, whatever it is, a worker of the cluster that served this script. 'beo token --boot' prints the line:
#
#   curl -fsS @BOOT@/boot.sh | sh -s -- --pin SHA256 --token TOKEN
#
# It fetches one archive with all that a worker needs (a Python, beo, and every library below them), believes it only if
# its SHA-256 is the one on the line, and starts the worker. It needs no root, a shell, tar, gzip, sha256sum, and one of
# curl, wget and busybox. Everything is in one folder: remove that, and nothing is left.
set -eu
STALL_S=${BEO_STALL_S:-30} # for a head that died while it sent

say() { printf 'beo: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

usage() {
  say "usage: sh -s -- --pin SHA256 --token TOKEN [--name NAME] [--slots N] [--rack RACK] [--dir FOLDER]" \
    "[--head HOST:PORT] [--boot URL] [--foreground]"
  exit 2
}

# The applets of a busybox that has no links to them.
applet() {
  if has "$1"; then
    "$@"
  else
    busybox "$@"
  fi
}

fetch() {
  if has curl; then
    curl -fsS --connect-timeout 5 --speed-limit 1000 --speed-time "$STALL_S" "$1"
  elif has wget && wget --version >/dev/null 2>&1; then # GNU's
    wget -q --tries 1 --timeout "$STALL_S" -O - "$1"
  elif has wget; then
    wget -q -O - "$1"
  elif has busybox; then
    busybox wget -q -O - "$1"
  else
    die "nothing here can fetch $1: install curl or wget"
  fi
}

unpack() { # FROM TO
  archive=$1.tar.gz
  fetch "$boot/runtime/$pin" >"$archive" ||
    die "no runtime $pin comes from $boot: is that head up, and space in $folder? If so, make a new line with 'beo token --boot'"
  sum=$(applet sha256sum <"$archive") || die "nothing here can check a SHA-256: install sha256sum or busybox"
  sum=${sum%% *}
  [ "$sum" = "$pin" ] || die "what $boot sent is not what the line names (it is ${sum:-nothing}): somebody is in between"
  applet mkdir -p "$1"
  applet gzip -dc <"$archive" | applet tar -xf - -C "$1" || die "can't unpack into $1: is its disk full?"
  applet rm -f "$archive"
  applet mv "$1" "$2" 2>/dev/null || [ -x "$2/bin/python3" ] || die "can't move $1 to $2"
}

main() {
  boot='@BOOT@' heads='@HEADS@' machine='@MACHINE@'
  pin='' token='' folder=${BEO_DIR:-} foreground=''
  set_name='' set_slots='' set_rack=''
  while [ $# -gt 0 ]; do
    case $1 in
      --foreground)
        foreground=1
        shift
        continue
        ;;
      --pin | --token | --dir | --head | --boot | --name | --slots | --rack) [ $# -gt 1 ] || die "$1 needs a value" ;;
      *) say "'$1' is no option of this script" && usage ;;
    esac
    case $1 in
      --pin) pin=$2 ;;
      --token) token=$2 ;;
      --dir) folder=$2 ;;
      --head) heads=$2 ;;
      --boot) boot=$2 ;;
      --name) set_name=$2 ;;
      --slots) set_slots=$2 ;;
      --rack) set_rack=$2 ;;
    esac
    shift 2
  done
  if [ -z "$pin" ] || [ -z "$token" ]; then usage; fi
  case $pin in
    *[!0-9a-f]*) die "--pin is no SHA-256: copy the line as 'beo token --boot' has printed it" ;;
  esac
  [ "${#pin}" = 64 ] || die "--pin is no SHA-256: copy the line as 'beo token --boot' has printed it"
  mine=$(applet uname -m)
  [ "$mine" = "$machine" ] || die "this box is $mine, and the runtime is for $machine: use 'beo worker' of a pip install"

  if [ -z "$folder" ]; then
    folder=${HOME:-/tmp}/.beo
    [ "$folder" != //.beo ] || folder=/var/lib/beo
  fi
  applet mkdir -p "$folder/runtime" || die "can't write to $folder: say --dir FOLDER"
  folder=$(cd "$folder" && pwd)
  runtime=$folder/runtime/$pin
  if [ ! -x "$runtime/bin/python3" ]; then
    scratch=$folder/runtime/.$$
    trap 'applet rm -rf "$scratch" "$scratch.tar.gz"' EXIT
    trap 'exit 130' INT TERM
    unpack "$scratch" "$runtime"
  fi
  "$runtime/bin/python3" -c '' </dev/null || die "no program runs in $folder (is it mounted noexec?): say --dir FOLDER"
  printf '#!/bin/sh\nBEO_DIR=%s exec %s "$@"\n' "'$folder'" "'$runtime/bin/beo'" >"$folder/beo"
  applet chmod 755 "$folder/beo"

  set -- --token -
  [ -z "$set_name" ] || set -- "$@" --name "$set_name"
  [ -z "$set_slots" ] || set -- "$@" --slots "$set_slots"
  [ -z "$set_rack" ] || set -- "$@" --rack "$set_rack"
  [ -z "$foreground" ] || set -- "$@" --foreground
  for head in $heads; do
    # By stdin, so that the token stands in one list of processes less.
    code=0
    printf '%s\n' "$token" | BEO_DIR=$folder BEO_RESIDENT=0 "$runtime/bin/python3" -P -m beo.front worker --head "$head" "$@" ||
      code=$?
    [ "$code" = 69 ] || break # no head is there: another one may be
  done
  [ "$code" = 0 ] || exit "$code"
  [ -n "$foreground" ] || say "on this box, '$folder/beo down' ends it, '$folder/beo up' starts it again"
}

main "$@"
