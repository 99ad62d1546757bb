// What a thread fetches while it multiplies, in the order in which it reads.
//
// The tiles of a panel for many rows leave memory idle, those for few rows wait for it. So the former fetch panels to come, an
// even part each: the one that their thread reads next and, before it, some for few rows, which are multiplied in between as
// soon as they are there. Fetched earlier they would be gone again: of what is fetched and not yet read, a second-level cache
// of 1 MB keeps some 200 KB (measured on Zen 5) beside a panel that is read over and over.
#pragma once
#include <algorithm>

#include "../isa.h"
#include "../pack.h"

namespace rp {

// The panels that the tiles of one fetch together. None: the one they multiply was fetched under another, and so will the next be.
class Ahead {
public:
    static constexpr int64_t kMost = 16;

    Ahead() = default;
    void clear() { count_ = 0; }
    void add(const uint8_t* panel) { panels_[count_++] = panel; }
    int64_t count() const { return count_; }
    const uint8_t* const* panels() const { return panels_; }

    // The last one of the list that was fetched whole, or null.
    bool is_ready(const uint8_t* panel) const { return panel == ready_; }
    void fetched(bool whole) { ready_ = whole ? panels_[count_ - 1] : nullptr; }

private:
    const uint8_t* panels_[kMost];
    int64_t count_ = 0;
    const uint8_t* ready_ = nullptr;
};

// Cuts panels of so many bytes into pieces, about even, none of two panels. There are at least as many as panels.
class Pieces {
public:
    Pieces(const Ahead& ahead, int64_t bytes, int64_t pieces) : ahead_(ahead), bytes_(bytes), pieces_(pieces) {}

    void next(const uint8_t*& at, int64_t& bytes) {
        if (of_panel_ == 0) {
            of_panel_ = ceil_div(pieces_, ahead_.count() - begun_);
            pieces_ -= of_panel_;
            piece_ = ceil_div(bytes_, of_panel_);
            at_ = ahead_.panels()[begun_++];
        }
        of_panel_--;
        at = at_;
        bytes = piece_;
        at_ += piece_;
    }
    // Of the panels, those begun and those of which all pieces are handed out.
    int64_t begun() const { return begun_; }
    int64_t whole() const { return of_panel_ ? begun_ - 1 : begun_; }

private:
    const Ahead& ahead_;
    int64_t bytes_, pieces_;               // pieces of panels not begun
    int64_t begun_ = 0, of_panel_ = 0, piece_ = 0;
    const uint8_t* at_ = nullptr;
};

// Hands out panels for few rows to those for many: to each as many as leave what follows with as many a tile, and with the
// next one for many no more than one a tile, which is about what memory gives meanwhile.
class Mix {
public:
    Mix(int64_t many, int64_t tiles, int64_t few) : many_(many), tiles_(tiles), few_(few) {}
    // How many may go with one of so many tiles.
    int64_t most(int64_t tiles) {
        const double a_tile = static_cast<double>(many_ + few_) / static_cast<double>(tiles_);
        due_ += static_cast<double>(tiles) * std::min(a_tile, 1.0) - 1.0;
        many_--, tiles_ -= tiles;
        return std::clamp<int64_t>(static_cast<int64_t>(due_), 0, few_);
    }
    void take_one() { few_--, due_ -= 1.0; }
    void leave_one() { few_--; }  // it is multiplied by itself

private:
    int64_t many_, tiles_, few_;
    double due_ = 0.0;
};

}  // namespace rp
