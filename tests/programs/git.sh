# Git clones a repository with a made-up history, repacks it, and checks it.
packages="git"
binary=/usr/bin/git

export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null

prepare() {
    rm -rf source.git
    git init --quiet --bare --initial-branch=main source.git
    perl -e '
        srand 7;
        my @words = map { join "", map { chr(97 + int rand 26) } 1 .. 3 + int rand 9 } 1 .. 3000;
        sub line { join " ", map { $words[rand @words] } 1 .. 3 + int rand 12 }
        my @files = map { [map { line() } 1 .. 20 + int rand 300] } 1 .. 150;
        for my $commit (1 .. 250 * shift) {
            my $time = 1_500_000_000 + 1000 * $commit;
            my $text = line();
            print "commit refs/heads/main\ncommitter A <a\@example.org> $time +0000\ndata ", length $text, "\n$text\n";
            for (1 .. 1 + int rand 6) {
                my $number = int(@files * rand() ** 2);
                my $file = $files[$number];
                splice @$file, rand @$file, int rand 4, map { line() } 1 .. 1 + int rand 4;
                my $content = join("\n", @$file) . "\n";
                print "M 100644 inline d", $number % 12, "/f$number\ndata ", length $content, "\n$content\n";
            }
        }' "$SIZE" | git -C source.git fast-import --quiet
}

run() {
    rm -rf clone.git
    preloaded git clone --quiet --no-local --bare source.git clone.git
    preloaded git -C clone.git -c pack.threads=2 -c gc.auto=0 gc --quiet --aggressive --prune=now
    preloaded git -C clone.git fsck --full --strict --no-progress
    preloaded git -C clone.git log --stat --format='%H %s' | cksum
    git -C clone.git rev-list --objects --all | cksum
}
