# The SQLite shell reads a script of SIZE times 50 MB: rows of two tables with an index, some of
# them updated or deleted later, and queries.
packages="sqlite3"
binary=/usr/bin/sqlite3

prepare() {
    perl -e '
        srand 7;
        my ($left, $id) = (50_000_000 * shift, 0);
        my @words = map { join "", map { chr(97 + int rand 26) } 1 .. 3 + int rand 9 } 1 .. 5000;
        sub text { join " ", map { $words[rand @words] } 1 .. $_[0] }
        my $print = sub { print $_[0]; $left -= length $_[0] };
        print "CREATE TABLE note(id INTEGER PRIMARY KEY, author TEXT, day INTEGER, body TEXT);\n",
            "CREATE INDEX by_author ON note(author, day);\nCREATE TABLE tag(note INTEGER, name TEXT);\nBEGIN;\n";
        while ($left > 0) {
            $id++;
            $print->(sprintf "INSERT INTO note VALUES(%d, \x27%s\x27, %d, \x27%s\x27);\n",
                $id, $words[rand 500], rand 3650, text(5 + int rand 80));
            $print->("INSERT INTO tag VALUES($id, \x27$words[rand 300]\x27);\n") for 1 .. rand 3;
            my $other = 1 + int rand $id;
            $print->("UPDATE note SET body = substr(body, 10) || \x27 again\x27 WHERE id = $other;\n") if rand() < 0.1;
            $print->("DELETE FROM note WHERE id = $other;\n") if rand() < 0.05;
        }
        print "COMMIT;\n";' "$SIZE" > script.sql
    cat >> script.sql <<'Q'
SELECT count(*), sum(day), sum(length(body)) FROM note;
SELECT author, count(*) AS n, max(body) FROM note GROUP BY author ORDER BY n DESC, author LIMIT 20;
SELECT name, count(*), min(day) FROM note JOIN tag ON note.id = tag.note GROUP BY name ORDER BY 2 DESC, 1 LIMIT 20;
SELECT substr(body, 1, 40), length(body) FROM note ORDER BY body LIMIT 20;
PRAGMA integrity_check;
Q
}

run() { preloaded sqlite3 :memory: < script.sql | cksum; }
