# GCC builds C++ programs with large headers for JSON and for regular expressions. The programs'
# answers and checksums show that they were built identically.
packages="g++ nlohmann-json3-dev"
binary=$(g++ -print-prog-name=cc1plus 2> /dev/null || true)

prepare() {
    cat > json.cc <<'C'
#include <nlohmann/json.hpp>
#include <iostream>

int main() {
    nlohmann::json document = nlohmann::json::parse(R"({"b": [1, 2.5, null, {"c": "d"}], "a": true})");
    for (int i = 0; i < 1000; i++) document["b"].push_back({{"n", i}, {"text", std::to_string(i * i)}});
    auto packed = nlohmann::json::to_cbor(document);
    std::cout << document.dump().size() << ' ' << packed.size() << ' ' << (nlohmann::json::from_cbor(packed) == document)
              << ' ' << nlohmann::json::diff(document, document["b"][3]).dump() << '\n';
}
C
    cat > words.cc <<'C'
#include <algorithm>
#include <iostream>
#include <map>
#include <regex>
#include <string>
#include <unordered_map>
#include <vector>

int main() {
    std::string text;
    for (int i = 0; i < 3000; i++) text += "w" + std::to_string(i * 7919 % 311) + (i % 7 ? " " : ", ");
    std::map<std::string, std::vector<size_t>> places;
    std::unordered_map<std::string, int> counts;
    std::regex word("w([0-9]+)(,?)");
    for (std::sregex_iterator found(text.begin(), text.end(), word), end; found != end; ++found) {
        places[found->str(1)].push_back(found->position());
        counts[found->str(2)]++;
    }
    std::vector<std::pair<size_t, std::string>> order;
    for (auto &[name, at] : places) order.emplace_back(at.size() * at.back(), name);
    std::sort(order.begin(), order.end());
    std::cout << order.back().second << ' ' << order.size() << ' ' << counts[","] << '\n';
}
C
}

run() {
    local source
    for source in words json; do
        preloaded g++ -std=c++17 -O"$((SIZE > 1 ? 2 : 0))" -o "$source" "$source.cc"
        "./$source"
        cksum < "$source"
    done
}
