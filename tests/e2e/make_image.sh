#!/usr/bin/env bash
# Imports stokehold/llama-server:local: the demo package's real llama-server with the libraries it needs, nothing pulled.
# usage: make_image.sh FOLDER_WITH_LLAMA_SERVER
set -euo pipefail
programs=$(cd "$1" && pwd)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/{app,etc,tmp,models}
cp -a "$programs"/. "$root/app/"
for object in "$programs"/llama-server "$programs"/*.so*; do
    { ldd "$object" 2>/dev/null || true; } | { grep -o '/[^ )]*' || true; } | sort -u | while read -r library; do
        case $library in "$programs"/*) continue ;; esac
        [ -e "$root$library" ] && continue
        mkdir -p "$root$(dirname "$library")"
        cp -L "$library" "$root$library"
    done
done
echo 'root:x:0:0::/:/bin/false' >"$root/etc/passwd"
tar -C "$root" -c . | docker import -c 'ENTRYPOINT ["/app/llama-server"]' -c 'ENV LD_LIBRARY_PATH=/app' \
    -c 'EXPOSE 8080' - stokehold/llama-server:local
