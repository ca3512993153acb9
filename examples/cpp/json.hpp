// A reader of JSON (RFC 8259), as small as a manifest needs. Prefer your project's own library to this one.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

struct Json {
    enum class Kind { null, boolean, number, text, array, object };

    Kind kind = Kind::null;
    bool boolean = false;
    double number = 0;
    std::string text;
    std::vector<Json> array;
    std::map<std::string, Json> object;

    // A member of an object. Throws std::runtime_error if there is none.
    const Json& operator[](const std::string& name) const {
        const auto found = object.find(name);
        if (found == object.end()) {
            throw std::runtime_error("expected a field '" + name + "', got none");
        }
        return found->second;
    }

    // Throws std::runtime_error unless it is of this kind.
    const Json& as(Kind wanted, const char* words) const {
        if (kind != wanted) {
            throw std::runtime_error(std::string("expected ") + words);
        }
        return *this;
    }
    const std::string& as_text() const { return as(Kind::text, "a text").text; }
    double as_number() const { return as(Kind::number, "a number").number; }
    const std::vector<Json>& as_array() const { return as(Kind::array, "an array").array; }
    bool is_null() const { return kind == Kind::null; }
};

class JsonReader {
  public:
    // Parse all of `source`. Throws std::runtime_error, with the place in bytes, if it is not JSON.
    static Json read(const std::string& source) {
        JsonReader reader(source);
        Json value = reader.value(0);
        reader.blanks();
        reader.expect(reader.at_ == source.size(), "the end");
        return value;
    }

  private:
    static constexpr int kDeepest = 100;

    explicit JsonReader(const std::string& source) : source_(source) {}

    void expect(bool holds, const std::string& what) const {
        if (!holds) {
            throw std::runtime_error("no JSON: expected " + what + " at byte " + std::to_string(at_));
        }
    }

    char peek() const { return at_ < source_.size() ? source_[at_] : '\0'; }

    void blanks() {
        while (at_ < source_.size() && std::string(" \t\r\n").find(source_[at_]) != std::string::npos) {
            ++at_;
        }
    }

    bool take(const std::string& word) {
        if (source_.compare(at_, word.size(), word) != 0) {
            return false;
        }
        at_ += word.size();
        return true;
    }

    Json value(int depth) {
        expect(depth < kDeepest, "at most 100 levels");
        blanks();
        Json found;
        switch (peek()) {
            case '{': members(found, depth); break;
            case '[': elements(found, depth); break;
            case '"': found.kind = Json::Kind::text; found.text = string(); break;
            default: literal(found);
        }
        return found;
    }

    void members(Json& found, int depth) {
        found.kind = Json::Kind::object;
        ++at_;
        for (bool first = true;; first = false) {
            blanks();
            if (first && take("}")) {
                return;
            }
            expect(peek() == '"', "a name");
            std::string name = string();
            blanks();
            expect(take(":"), "':'");
            found.object[std::move(name)] = value(depth + 1);
            blanks();
            if (take("}")) {
                return;
            }
            expect(take(","), "',' or '}'");
        }
    }

    void elements(Json& found, int depth) {
        found.kind = Json::Kind::array;
        ++at_;
        for (bool first = true;; first = false) {
            blanks();
            if (first && take("]")) {
                return;
            }
            found.array.push_back(value(depth + 1));
            blanks();
            if (take("]")) {
                return;
            }
            expect(take(","), "',' or ']'");
        }
    }

    void literal(Json& found) {
        if (take("null")) {
            return;
        }
        if (take("true") || take("false")) {
            found.kind = Json::Kind::boolean;
            found.boolean = source_[at_ - 2] == 'u';  // tr-u-e, fal-s-e
            return;
        }
        expect(peek() == '-' || (peek() >= '0' && peek() <= '9'), "a value");
        char* end = nullptr;
        found.kind = Json::Kind::number;
        found.number = std::strtod(source_.c_str() + at_, &end);
        at_ = static_cast<std::size_t>(end - source_.c_str());
    }

    std::string string() {
        std::string found;
        for (++at_; peek() != '"'; ++at_) {
            expect(at_ < source_.size(), "the end of a text");
            if (source_[at_] != '\\') {
                found += source_[at_];
                continue;
            }
            ++at_;
            escaped(found);
        }
        ++at_;
        return found;
    }

    void escaped(std::string& found) {
        static const std::string names = "\"\\/bfnrt", meant = "\"\\/\b\f\n\r\t";
        if (peek() != 'u') {
            const auto place = names.find(peek());
            expect(at_ < source_.size() && place != std::string::npos, "an escape");
            found += meant[place];
            return;
        }
        std::uint32_t code = hex();
        if (code >= 0xD800 && code < 0xDC00 && source_.compare(at_ + 1, 2, "\\u") == 0) {  // half of a pair
            at_ += 2;
            code = 0x10000 + ((code - 0xD800) << 10) + (hex() - 0xDC00);
        }
        add_utf8(found, code);
    }

    // The four digits after the u; ends at the last of them.
    std::uint32_t hex() {
        const std::string digits = source_.substr(at_ + 1, 4);
        expect(digits.size() == 4 && digits.find_first_not_of("0123456789abcdefABCDEF") == std::string::npos,
               "four hexadecimal digits");
        at_ += 4;
        return static_cast<std::uint32_t>(std::stoul(digits, nullptr, 16));
    }

    static void add_utf8(std::string& found, std::uint32_t code) {
        const auto add = [&found](std::uint32_t byte) { found += static_cast<char>(byte); };
        if (code < 0x80) {
            add(code);
        } else if (code < 0x800) {
            add(0xC0 | code >> 6), add(0x80 | (code & 0x3F));
        } else if (code < 0x10000) {
            add(0xE0 | code >> 12), add(0x80 | (code >> 6 & 0x3F)), add(0x80 | (code & 0x3F));
        } else {
            add(0xF0 | code >> 18), add(0x80 | (code >> 12 & 0x3F)), add(0x80 | (code >> 6 & 0x3F));
            add(0x80 | (code & 0x3F));
        }
    }

    const std::string& source_;
    std::size_t at_ = 0;
};
