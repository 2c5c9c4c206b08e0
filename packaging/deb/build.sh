#!/usr/bin/env bash
# Builds the Debian package: the wheel and what it needs in a virtual environment under
# /opt/triton-governor, so that the machine's own Python is left alone; the units, manual pages and
# completion where a distribution has them.
#
#   packaging/deb/build.sh [WHEEL [FOLDER]]       default: the newest in dist/, into dist/
#
# PYTHON is the interpreter of the target: the distribution's own, of the release it is built for.
# PIP is any pip of 22.3 or newer; nothing of it goes into the package.
set -euo pipefail
umask 022
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(dirname "$(dirname "$here")")
PYTHON=${PYTHON:-/usr/bin/python3}
PIP=${PIP:-$top/.venv/bin/python -m pip}
wheel=${1:-$(ls -t "$top"/dist/triton_governor-*.whl 2>/dev/null | head -n 1)}
folder=${2:-$top/dist}

fail() { echo "deb: $*" >&2; exit 1; }
[[ -f $wheel ]] || fail "there is no wheel; make dist builds one"
for tool in dpkg-deb gzip; do command -v "$tool" >/dev/null || fail "$tool is missing"; done
"$PYTHON" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' ||
  fail "$PYTHON is older than 3.11, or missing: name another one, PYTHON=/usr/bin/python3.12"

minor=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[[ -x /usr/bin/python$minor ]] || fail "/usr/bin/python$minor is what the package would depend on, and it is not there"
version=$(basename "$wheel" | cut -d- -f2)
architecture=$(dpkg --print-architecture)
root=$(mktemp -d)
chmod 755 "$root" # it is the machine's / in the package
maintainer="${DEBFULLNAME:-$(id -un)} <${DEBEMAIL:-$(id -un)@$(uname -n)}>" # whoever builds it
trap 'rm -rf "$root"' EXIT
prefix=$root/opt/triton-governor

# --- the environment --------------------------------------------------------------------------
"/usr/bin/python$minor" -m venv --without-pip "$prefix"
$PIP --python "$prefix/bin/python" install --quiet --no-compile \
  --constraint "$top/constraints.txt" "$wheel"
# Commands of libraries are not ours to offer.
find "$prefix/bin" -type f ! -name governor -delete
# What holds the path it was built under: scripts, where pip had the wheel from, activation.
rm -f "$prefix"/lib/python*/site-packages/*.dist-info/direct_url.json
sed -i "1s|^#!$prefix/bin/python[0-9.]*|#!/opt/triton-governor/bin/python3|" \
  "$prefix/bin/governor"
sed -i "s|$prefix|/opt/triton-governor|" "$prefix/pyvenv.cfg"
ln -sfn "/usr/bin/python$minor" "$prefix/bin/python$minor"
ln -sfn "python$minor" "$prefix/bin/python3"
ln -sfn python3 "$prefix/bin/python"
rm -rf "$prefix/share" # where a distribution has them, below
# Compiled here: the service may not write there, and would compile at every start.
"$prefix/bin/python" -m compileall -q -s "$root" "$prefix/lib" >/dev/null || true
if left=$(grep -rlI "$root" "$prefix"); then fail "the build folder's name is left in $left"; fi

# --- where a distribution has things ----------------------------------------------------------
put() { install -D -m 644 "$1" "$root/$2"; }
squeeze() { install -d "$(dirname "$root/$2")"; gzip -9n <"$1" >"$root/$2"; }
install -d "$root/usr/bin"
ln -s /opt/triton-governor/bin/governor "$root/usr/bin/governor"
for unit in "$top"/systemd/*.service; do put "$unit" "usr/lib/systemd/system/$(basename "$unit")"; done
for file in "$top"/systemd/*.sysusers.conf; do
  put "$file" "usr/lib/sysusers.d/$(basename "$file" .sysusers.conf).conf"
done
for file in "$top"/systemd/*.tmpfiles.conf; do
  put "$file" "usr/lib/tmpfiles.d/$(basename "$file" .tmpfiles.conf).conf"
done
for page in "$top"/packaging/man/*.[15]; do
  squeeze "$page" "usr/share/man/man${page##*.}/$(basename "$page").gz"
done
put "$top/packaging/completions/governor.bash" usr/share/bash-completion/completions/governor
put "$top/packaging/completions/_governor" usr/share/zsh/vendor-completions/_governor
put "$top/packaging/completions/governor.fish" usr/share/fish/vendor_completions.d/governor.fish
doc=usr/share/doc/triton-governor
(cd "$top/policies" && find . -type f) | while read -r example; do put "$top/policies/$example" "$doc/examples/$example"; done
put "$here/copyright" "$doc/copyright"
squeeze "$top/CHANGELOG.md" "$doc/changelog.gz"
date=$(date -R --utc --date="@${SOURCE_DATE_EPOCH:-$(git -C "$top" log -1 --format=%ct 2>/dev/null || date +%s)}")
printf 'triton-governor (%s-1) unstable; urgency=medium\n\n  * See changelog.gz.\n\n -- %s  %s\n' \
  "$version" "$maintainer" "$date" >"$root/debian-changelog"
squeeze "$root/debian-changelog" "$doc/changelog.Debian.gz"
rm "$root/debian-changelog"
put "$here/lintian-overrides" usr/share/lintian/overrides/triton-governor

# --- the package ------------------------------------------------------------------------------
install -d "$root/DEBIAN"
for script in postinst prerm postrm; do install -m 755 "$here/$script" "$root/DEBIAN/$script"; done
size=$(du -sk --exclude=DEBIAN "$root" | cut -f1)
sed -e "s/@VERSION@/$version/" -e "s/@ARCHITECTURE@/$architecture/" -e "s/@MINOR@/$minor/" \
  -e "s/@SIZE@/$size/" -e "s|@MAINTAINER@|$maintainer|" "$here/control" >"$root/DEBIAN/control"
(cd "$root" && find usr opt -type f -print0 | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
install -d "$folder"
package=$folder/triton-governor_$version-1_$architecture.deb
# zstd: dpkg reads it since Debian 12 and Ubuntu 21.10, and it takes a tenth of xz's time.
dpkg-deb --root-owner-group -Zzstd --build "$root" "$package" >/dev/null
echo "$package"
