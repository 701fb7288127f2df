# Perl counts words in a hash of hashes, sorts, matches, and builds and splits strings.
packages="perl"
binary=/usr/bin/perl

prepare() {
    cat > work.pl <<'P'
use strict;
use warnings;
srand 7;
my $size = shift;
my @words = map { join '', map { chr(97 + int rand 26) } 1 .. 2 + int rand 12 } 1 .. 20000;
my (%count, %follows, @lines);
for my $n (1 .. 12000 * $size) {
    my @line = map { $words[rand(@words) * rand] } 1 .. 5 + int rand 20;
    push @lines, join ' ', @line;
    $count{$_}++ for @line;
    $follows{$line[$_]}{$line[$_ + 1]}++ for 0 .. $#line - 1;
}
my @common = (sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count)[0 .. 50];
print "$_ $count{$_} ", scalar keys %{$follows{$_}}, "\n" for @common;
my %index;
while (my ($n, $line) = each @lines) {
    push @{$index{$1}}, $n while $line =~ /\b(\w{2,3}) \w*e\w*/g;
    (my $other = $line) =~ s/(\w+) (\w+)/$2 $1/g;
    $lines[$n] = uc($other) . length $line if $n % 3 == 0;
}
my $text = q{};
for my $key (sort keys %index) {
    $text .= "$key:" . join(',', @{$index{$key}}) . ';';
}
print length $text, ' ', unpack('%32C*', $text), "\n";
print unpack('%32C*', join '', sort { $a cmp $b } @lines), "\n";
P
}

run() { preloaded perl work.pl "$SIZE" | cksum; }
