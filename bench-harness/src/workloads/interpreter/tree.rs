//! The syntax tree of a program.

use std::rc::Rc;

/// A node of a program's syntax tree.
pub(super) enum Expression {
    Number(i64),
    Text(Rc<str>),
    Variable(Rc<str>),
    /// `(if condition then else)`.
    If(Box<[Expression; 3]>),
    /// `(let name value body)`.
    Let(Rc<str>, Box<[Expression; 2]>),
    /// `(fn (parameters) body)`.
    Function(Rc<Function>),
    /// `(operator operands)`.
    Call(Box<Expression>, Vec<Expression>),
}

/// A function as `fn` defines it, without the environment that it closes over.
pub(super) struct Function {
    pub(super) parameters: Vec<Rc<str>>,
    pub(super) body: Expression,
}
