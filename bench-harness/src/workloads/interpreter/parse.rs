//! Parses text to a syntax tree. Panics on a faulty program, since the programs are constants.

use std::iter::Peekable;
use std::rc::Rc;

use super::tree::{Expression, Function};

/// Parses one expression.
pub(super) fn parse(source: &str) -> Expression {
    let tokens = tokens(source);
    expression(&mut tokens.into_iter().peekable())
}

/// Splits at spaces and parentheses. A string token keeps only its opening quote.
fn tokens(source: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    let mut characters = source.chars().peekable();
    while let Some(character) = characters.next() {
        let mut token = String::from(character);
        match character {
            '(' | ')' => {}
            '"' => token.extend(characters.by_ref().take_while(|&next| next != '"')),
            _ if character.is_whitespace() => continue,
            _ => {
                let in_word = |next: &char| !next.is_whitespace() && !"()".contains(*next);
                while let Some(next) = characters.next_if(in_word) {
                    token.push(next);
                }
            }
        }
        tokens.push(token);
    }
    tokens
}

type Tokens = Peekable<std::vec::IntoIter<String>>;

fn expression(tokens: &mut Tokens) -> Expression {
    let token = next(tokens);
    if token == "(" {
        return form(tokens);
    }
    if let Some(text) = token.strip_prefix('"') {
        return Expression::Text(Rc::from(text));
    }
    match token.parse() {
        Ok(number) => Expression::Number(number),
        Err(_) => Expression::Variable(Rc::from(token)),
    }
}

/// Parses the form after an opening parenthesis, including the closing one.
fn form(tokens: &mut Tokens) -> Expression {
    let keyword = tokens.peek().map(String::as_str);
    let form = match keyword {
        Some("if") => {
            next(tokens);
            Expression::If(Box::new([expression(tokens), expression(tokens), expression(tokens)]))
        }
        Some("let") => {
            next(tokens);
            let name = Rc::from(next(tokens));
            Expression::Let(name, Box::new([expression(tokens), expression(tokens)]))
        }
        Some("fn") => {
            next(tokens);
            assert_eq!(next(tokens), "(");
            let parameters = until_closed(tokens, |tokens| Rc::from(next(tokens)));
            let function = Function { parameters, body: expression(tokens) };
            Expression::Function(Rc::new(function))
        }
        _ => {
            let operator = Box::new(expression(tokens));
            return Expression::Call(operator, until_closed(tokens, expression));
        }
    };
    assert_eq!(next(tokens), ")");
    form
}

/// Parses items with `item` up to and including the closing parenthesis.
fn until_closed<T>(tokens: &mut Tokens, item: impl Fn(&mut Tokens) -> T) -> Vec<T> {
    let mut items = Vec::new();
    while tokens.peek().is_some_and(|token| token != ")") {
        items.push(item(tokens));
    }
    next(tokens);
    items
}

fn next(tokens: &mut Tokens) -> String {
    tokens.next().expect("a program that is complete")
}
