#!/bin/sh
# Builds replacements from Debian packages under the names of the real images, for an engine without an image registry.
# Needs debootstrap and root. Do not run it on an engine with the real images.
set -eu
cd "$(dirname "$0")"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
debootstrap --variant=minbase --include=ca-certificates trixie "$folder/root" >"$folder/log" || { tail "$folder/log" >&2 && exit 1; }
# The CA certificates and the pip configuration of this machine.
cp /etc/ssl/certs/ca-certificates.crt "$folder/root/etc/ssl/certs/"
[ ! -f /etc/pip.conf ] || cp /etc/pip.conf "$folder/root/etc/"
tar -C "$folder/root" -c . | docker import - tickpipe-debian
for image in $(sed -n 's/^FROM \([^ ]*\).*/\1/p; s/^ *image: //p' ../../Dockerfile ../../docker-compose.yml |
    grep -v -e '^tickpipe$' -e grafana | sort -u); do
    target=${image%%:*}
    docker build --quiet --target "${target##*/}" --tag "$image" .
done
