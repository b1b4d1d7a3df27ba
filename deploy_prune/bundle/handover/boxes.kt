// What the outputs of $artifact say: boxes. The program is the same for all kinds of detectors; the numbers are this
// one's.
import kotlin.math.exp
import kotlin.math.max
import kotlin.math.min
import kotlin.math.sqrt

/** Edges in pixels; label: a place in labels.json, from 0 on. */
data class Box(
    val left: Float, val top: Float, val right: Float, val bottom: Float, val score: Float, val label: Int
)

/** Numbers in an output: that of a row and column stands at start + row * perRow + column * perColumn. */
class Field(val output: Int, val start: Int, val perRow: Int, val perColumn: Int)

/**
 * Rows whose numbers stand together. Anchors on a grid: ANCHORS[first] and the following, perPlace at a place, moved by
 * the steps; or, where anchors has an output, among the outputs. more: a number that the scores depend on, too.
 */
class Level(
    val rows: Int, val width: Int, val perPlace: Int, val first: Int, val stepY: Double, val stepX: Double,
    val scores: Field, val codes: Field, val more: Field, val anchors: Field
)

enum class More { NONE, FACTOR, ROOT } // scores as they are, times more, or the root of that
enum class Group { ALL, LEVEL, COLUMN } // what has CANDIDATES of its own
enum class Codes { DELTAS, DISTANCES, SHARES, EDGES } // what a box's numbers are
enum class Clip { BEFORE, AFTER, NEVER } // when a box is cut at the input's edges

val LEVELS = listOf<Level>(
$levels
)
val ANCHORS = listOf<DoubleArray>(
$anchors
)
const val LOGITS = $logits
const val FIRST = $first
const val COLUMNS = $columns
const val CANDIDATES = $candidates
const val BINS = $bins
const val CODES_PER_LOGIT = $codes_per_logit
const val MOST_BOXES = $most_boxes
const val SHIFT = $shift
const val SOFTMAX = $softmax
const val ONE_EACH = $one_each
val MORE = More.$more_upper
val GROUP = Group.$group_upper
val CODES = Codes.$codes_upper
val CLIP = Clip.$clip_upper
const val LEAST_SCORE = ${least_score}f
const val OVERLAP = ${overlap}f
const val LEAST_SIDE = ${least_side}f
const val MOST = ${most}f
val WEIGHTS = floatArrayOf($weights_f)

fun number(outputs: List<FloatArray>, field: Field, row: Int, column: Int): Float =
    outputs[field.output][field.start + row * field.perRow + column * field.perColumn]

fun sigmoid(logit: Float): Float = 1 / (1 + exp(-logit))

/** Shares of a whole, from logits. */
fun softmax(logits: FloatArray) {
    var highest = logits[0]
    for (logit in logits) highest = max(highest, logit)
    for (i in logits.indices) logits[i] = exp(logits[i] - highest)
    val sum = logits.sum()
    for (i in logits.indices) logits[i] /= sum
}

/** Scores [COLUMNS] of a row. */
fun scoresOf(outputs: List<FloatArray>, level: Level, row: Int): FloatArray {
    val every = FloatArray(LOGITS) { number(outputs, level.scores, row, it) }
    if (SOFTMAX) softmax(every)
    val scores = every.copyOfRange(FIRST, FIRST + COLUMNS)
    for (i in scores.indices) {
        if (!SOFTMAX) scores[i] = sigmoid(scores[i])
        if (MORE != More.NONE) scores[i] *= sigmoid(number(outputs, level.more, row, 0))
        if (MORE == More.ROOT) scores[i] = sqrt(scores[i])
    }
    return scores
}

/** The anchor of a row: left, top, right, bottom. */
fun anchorOf(outputs: List<FloatArray>, level: Level, row: Int): FloatArray {
    val place = row / level.perPlace
    val y = place / level.width
    val x = place % level.width
    return FloatArray(4) { i ->
        if (level.anchors.output >= 0) {
            number(outputs, level.anchors, row, i)
        } else {
            val moved = if (i % 2 == 0) x * level.stepX else y * level.stepY
            (ANCHORS[level.first + row % level.perPlace][i] + moved).toFloat()
        }
    }
}

/** A row's numbers for a box; of a distribution over bins the mean. Classes may have their own. */
fun codesOf(outputs: List<FloatArray>, level: Level, row: Int, column: Int): FloatArray {
    val found = FloatArray(4)
    for (i in 0 until 4) {
        val before = (FIRST + column) * CODES_PER_LOGIT + i * BINS
        val bins = FloatArray(BINS) { number(outputs, level.codes, row, before + it) }
        found[i] = bins[0]
        if (BINS == 1) continue
        softmax(bins)
        found[i] = 0f
        for (bin in 0 until BINS) found[i] += bins[bin] * bin
    }
    return found
}

/** One side of a box, along x (axis 0) or y (axis 1), of size pixels: from, to. */
fun sideOf(code: FloatArray, anchor: FloatArray, axis: Int, size: Float): FloatArray {
    if (CODES == Codes.EDGES) return floatArrayOf(code[axis], code[axis + 2])
    if (CODES == Codes.SHARES)
        return floatArrayOf((code[axis] - code[axis + 2] / 2) * size, (code[axis] + code[axis + 2] / 2) * size)
    val side = anchor[axis + 2] - anchor[axis]
    val centre = anchor[axis] + side / 2
    if (CODES == Codes.DISTANCES) return floatArrayOf(centre - code[axis] * side, centre + code[axis + 2] * side)
    val moved = centre + code[axis] / WEIGHTS[axis] * side
    val half = exp(min(code[axis + 2] / WEIGHTS[axis + 2], MOST)) * side / 2
    return floatArrayOf(moved - half, moved + half)
}

fun clip(box: Box, height: Float, width: Float): Box =
    box.copy(
        left = max(0f, min(box.left, width)), right = max(0f, min(box.right, width)),
        top = max(0f, min(box.top, height)), bottom = max(0f, min(box.bottom, height))
    )

fun boxOf(outputs: List<FloatArray>, level: Level, row: Int, column: Int, score: Float): Box {
    val code = codesOf(outputs, level, row, column)
    var anchor = code
    if (CODES == Codes.DELTAS || CODES == Codes.DISTANCES) anchor = anchorOf(outputs, level, row)
    val across = sideOf(code, anchor, 0, WIDTH.toFloat())
    val down = sideOf(code, anchor, 1, HEIGHT.toFloat())
    val box = Box(across[0], down[0], across[1], down[1], score, FIRST + column)
    return if (CLIP == Clip.BEFORE) clip(box, HEIGHT.toFloat(), WIDTH.toFloat()) else box
}

/** A score, and what has it. */
class Candidate(val score: Float, val level: Int, val row: Int, val column: Int)

/** The best of one group, their scores falling. */
fun addBest(found: MutableList<Candidate>, group: MutableList<Candidate>) {
    found.addAll(group.sortedByDescending { it.score }.take(CANDIDATES)) // sorting keeps the order of equals
    group.clear()
}

/** What scores above LEAST_SCORE, the best of each group. */
fun candidates(outputs: List<FloatArray>): List<Candidate> {
    val groups = List(if (GROUP == Group.COLUMN) COLUMNS else 1) { mutableListOf<Candidate>() }
    val found = mutableListOf<Candidate>()
    for (l in LEVELS.indices) {
        for (row in 0 until LEVELS[l].rows) {
            val scores = scoresOf(outputs, LEVELS[l], row)
            var best = 0
            for (column in 0 until COLUMNS) if (scores[column] > scores[best]) best = column
            for (column in 0 until COLUMNS)
                if (scores[column] > LEAST_SCORE && (!ONE_EACH || column == best))
                    groups[if (GROUP == Group.COLUMN) column else 0].add(Candidate(scores[column], l, row, column))
        }
        if (GROUP == Group.LEVEL) addBest(found, groups[0])
    }
    for (group in groups) addBest(found, group)
    return found
}

/** Intersection over union; 0 where neither has an area. */
fun overlap(a: Box, b: Box): Float {
    val across = min(a.right, b.right) - max(a.left, b.left)
    val down = min(a.bottom, b.bottom) - max(a.top, b.top)
    val both = max(across, 0f) * max(down, 0f)
    val all = (a.right - a.left) * (a.bottom - a.top) + (b.right - b.left) * (b.bottom - b.top) - both
    return if (all > 0) both / all else 0f
}

/** Non-maximum suppression, each class on its own: the boxes that stay, their scores falling. */
fun suppressed(boxes: List<Box>): List<Box> {
    val stay = mutableListOf<Box>()
    for (box in boxes.sortedBy { it.label }.sortedByDescending { it.score }) {
        if (stay.size == MOST_BOXES) break
        if (stay.none { it.label == box.label && overlap(it, box) > OVERLAP }) stay.add(box)
    }
    return stay
}

/** Boxes in pixels of the network's input. */
fun boxesInInput(outputs: List<FloatArray>): List<Box> {
    val every = mutableListOf<Box>()
    val found = mutableListOf<Box>()
    for (each in candidates(outputs)) {
        val box = boxOf(outputs, LEVELS[each.level], each.row, each.column, each.score)
        val side = min(box.right - box.left, box.bottom - box.top)
        if (LEAST_SIDE == 0f || side >= LEAST_SIDE) every.add(box)
    }
    for (each in suppressed(every)) {
        var box = each.copy(label = each.label - SHIFT)
        if (CLIP == Clip.AFTER) box = clip(box, HEIGHT.toFloat(), WIDTH.toFloat())
        if (box.label >= 0) found.add(box)
    }
    return found
}

/** Boxes in pixels of a picture of this size, their scores falling. */
fun boxes(outputs: List<FloatArray>, height: Int, width: Int): List<Box> {
    val m = mapping(height, width)
    return boxesInInput(outputs).map { box ->
        val moved = box.copy(
            left = ((box.left - m.shiftX) / m.scaleX).toFloat(), right = ((box.right - m.shiftX) / m.scaleX).toFloat(),
            top = ((box.top - m.shiftY) / m.scaleY).toFloat(), bottom = ((box.bottom - m.shiftY) / m.scaleY).toFloat()
        )
        clip(moved, height.toFloat(), width.toFloat())
    }
}
