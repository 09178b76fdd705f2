#!/bin/bash
# git: commits, branches, a merge, clones of a local repository, gc, fsck.
set -eu
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.org
export GIT_AUTHOR_DATE='2026-01-01T00:00:00Z' GIT_COMMITTER_DATE='2026-01-01T00:00:00Z'
cd "$(mktemp -d)"
git init -q -b main origin && cd origin
for i in $(seq 1 30); do
    mkdir -p "dir$((i % 5))"
    seq 1 $((i * 50)) >"dir$((i % 5))/file$i"
    git add . && git commit -q -m "commit $i"
done
git rev-parse HEAD
git checkout -q -b side HEAD~10 && echo side >side && git add side && git commit -q -m side
git checkout -q main && git merge -q --no-edit side && git log --oneline | wc -l
git rev-parse HEAD
cd .. && git clone -q origin copy && git clone -q --no-local --bare origin bare && git clone -q --depth 3 "file://$PWD/origin" shallow
git -C copy log --format=%H | sha256sum
git -C shallow log --oneline | wc -l
git -C bare gc -q && git -C bare fsck --full 2>/dev/null && git -C bare count-objects -v | grep -E 'packs|in-pack|count'
cd copy && echo change >>dir1/file1 && git status --short && git stash -q && git stash pop -q && git diff --stat | cat
git commit -q -a -m change && git push -q ../bare HEAD:pushed && git -C ../bare rev-parse pushed
git gc -q --aggressive --prune=now && git fsck && git archive HEAD | sha256sum
git grep -c 100 | sort | sha256sum
git blame -s dir1/file1 | sha256sum
git checkout -q -b picked HEAD~5 && git cherry-pick main >/dev/null && git log --format=%s -n 1
